//! What readers hold: every function, namespace and secret's version at one moment. A snapshot is never changed; the next one
//! shares all but what changed with it, so that a change costs the same among ten functions and among a hundred thousand.
//! It never holds a secret's value.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use taper_model::{
    Digest, Function, FunctionName, Name, Namespace,
    route::{Route, Table},
    traffic::Limits,
    trigger::Trigger,
};

use crate::{Error, Shared, tables};

/// Functions by name.
pub type Functions = Shared<FunctionName, Arc<Function>>;
/// Routes by namespace and name.
pub type Routes = Shared<(Name, Name), Arc<Route>>;
/// What the rules of all routes and functions make together, by host in lower case; those for any host under the empty one.
pub type Tables = Shared<String, Arc<Table>>;
/// Triggers by namespace and name.
pub type Triggers = Shared<(Name, Name), Arc<Trigger>>;
/// The versions of secrets, by namespace and name.
pub type Secrets = Shared<(Name, Name), u64>;

/// Everything the gateway and the control plane read, always whole: a reader holds one version until it lets go.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Counts up with every change, from 0 when the store is opened.
    pub version: u64,
    /// Every function.
    pub functions: Functions,
    /// Every namespace; the default one is always among them.
    pub namespaces: Arc<BTreeMap<Name, Arc<Namespace>>>,
    /// Every route.
    pub routes: Routes,
    /// Who is asked for which host. The tables follow from the routes and from what functions say of themselves.
    pub tables: Tables,
    /// Every trigger.
    pub triggers: Triggers,
    /// Every secret's version; see [`taper_model::Secret`].
    pub secrets: Secrets,
}

/// Nothing but the default namespace.
impl Default for Snapshot {
    fn default() -> Self {
        let name = Name::default_namespace();
        let namespace = Namespace {
            name: name.clone(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            limits: Limits::default(),
        };
        Self {
            version: 0,
            functions: Functions::default(),
            namespaces: Arc::new(BTreeMap::from([(name, Arc::new(namespace))])),
            routes: Routes::default(),
            tables: Tables::default(),
            triggers: Triggers::default(),
            secrets: Secrets::default(),
        }
    }
}

impl Snapshot {
    /// A function by name.
    pub fn function(&self, name: &FunctionName) -> Option<&Arc<Function>> {
        self.functions.get(name)
    }

    /// A secret's version; it grows with every change, and no two values of one secret ever share one.
    pub fn secret_version(&self, namespace: &Name, name: &Name) -> Option<u64> {
        self.secrets.get(&(namespace.clone(), name.clone())).copied()
    }

    /// Every artifact that some revision is made of.
    pub fn artifacts(&self) -> HashSet<Digest> {
        self.functions.values().flat_map(|f| &f.revisions).filter_map(|e| e.revision.artifact).collect()
    }

    /// A route by its names.
    pub fn route(&self, namespace: &Name, name: &Name) -> Option<&Arc<Route>> {
        self.routes.get(&(namespace.clone(), name.clone()))
    }

    /// A trigger by its names.
    pub fn trigger(&self, namespace: &Name, name: &Name) -> Option<&Arc<Trigger>> {
        self.triggers.get(&(namespace.clone(), name.clone()))
    }

    /// The next snapshot, in which one function is so, or gone.
    ///
    /// # Errors
    /// [`Error::Taken`] when one of its rules cannot be there beside those of others.
    pub(crate) fn with(&self, name: &FunctionName, after: Option<Arc<Function>>) -> Result<Self, Error> {
        let before = self.functions.get(name).map(AsRef::as_ref);
        let tables = tables::with_function(&self.tables, name, before, after.as_deref())?;
        let mut next = Self { tables, ..self.next() };
        match after {
            Some(function) => next.functions.insert(name.clone(), function),
            None => next.functions.remove(name),
        }
        Ok(next)
    }

    /// The next snapshot, in which some functions have other revisions.
    pub(crate) fn with_all(&self, functions: Vec<Arc<Function>>) -> Self {
        let mut next = self.next();
        functions.into_iter().for_each(|function| next.functions.insert(function.name.clone(), function));
        next
    }

    /// The next snapshot, in which one route is so, or gone.
    ///
    /// # Errors
    /// [`Error::Taken`] when one of its rules cannot be there beside those of others.
    pub(crate) fn with_route(&self, key: (Name, Name), after: Option<Arc<Route>>) -> Result<Self, Error> {
        let before = self.routes.get(&key).map(AsRef::as_ref);
        let tables = tables::with_route(&self.tables, &key, before, after.as_deref())?;
        let mut next = Self { tables, ..self.next() };
        match after {
            Some(route) => next.routes.insert(key, route),
            None => next.routes.remove(&key),
        }
        Ok(next)
    }

    /// The next snapshot, in which one trigger is so, or gone.
    pub(crate) fn with_trigger(&self, key: (Name, Name), after: Option<Arc<Trigger>>) -> Self {
        let mut next = self.next();
        match after {
            Some(trigger) => next.triggers.insert(key, trigger),
            None => next.triggers.remove(&key),
        }
        next
    }

    /// The next snapshot, in which one namespace is so, or gone.
    pub(crate) fn with_namespace(&self, name: &Name, after: Option<Namespace>) -> Self {
        let mut next = self.next();
        let namespaces = Arc::make_mut(&mut next.namespaces);
        match after {
            Some(namespace) => namespaces.insert(name.clone(), Arc::new(namespace)),
            None => namespaces.remove(name),
        };
        next
    }

    /// The next snapshot, in which one secret has this version, or is gone.
    pub(crate) fn with_secret(&self, key: (Name, Name), after: Option<u64>) -> Self {
        let mut next = self.next();
        match after {
            Some(version) => next.secrets.insert(key, version),
            None => next.secrets.remove(&key),
        }
        next
    }

    fn next(&self) -> Self {
        Self { version: self.version + 1, ..self.clone() }
    }
}
