//! The control plane: resource API, OpenFaaS face, reconciler.
