//! The small program inside an instance: starts the function, passes calls, holds limits and deadlines.
