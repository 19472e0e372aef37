//! Which trigger there is under a name: the one that the store has, or else the schedule in the annotations of the function of that name, as
//! OpenFaaS's cron connector reads them.

use std::sync::Arc;

use taper_model::{
    Function, FunctionName, Invalid, Name,
    trigger::{Trigger, TriggerSpec, schedule::Schedule},
};
use taper_store::Snapshot;

/// OpenFaaS's annotations.
const TOPIC: &str = "topic";
const SCHEDULE: &str = "schedule";
/// The topic that stands for a schedule.
const CRON: &str = "cron-function";

/// A trigger, and since when it is there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    pub(crate) trigger: Arc<Trigger>,
    pub(crate) since_ms: u64,
}

/// The trigger of this namespace and name that there should be; none, or why it cannot be one.
pub(crate) fn desired(snapshot: &Snapshot, key: &(Name, Name)) -> Option<Result<Found, Invalid>> {
    if let Some(trigger) = snapshot.triggers.get(key) {
        return Some(Ok(Found { since_ms: trigger.created_ms, trigger: Arc::clone(trigger) }));
    }
    let function = snapshot.function(&FunctionName::new(key.0.clone(), key.1.clone()))?;
    annotated(function)
}

fn annotated(function: &Function) -> Option<Result<Found, Invalid>> {
    let revision = &function.latest().revision;
    let annotations = &revision.annotations;
    annotations.get(TOPIC)?.split(',').find(|topic| topic.trim() == CRON)?;
    let Some(schedule) = annotations.get(SCHEDULE) else {
        let why = format!("annotation {TOPIC}: `{CRON}` wants an annotation `{SCHEDULE}` such as `*/10 * * * *`");
        return Some(Err(Invalid(why)));
    };
    if let Err(Invalid(why)) = Schedule::parse(schedule, None) {
        return Some(Err(Invalid(format!("annotation {why}"))));
    }
    let FunctionName { namespace, name } = function.name.clone();
    let spec = TriggerSpec { function: Some(name.clone()), schedule: Some(schedule.clone()), ..TriggerSpec::default() };
    // It is the function's as long as that is there, so that a deploy does not make it another one.
    let trigger = Arc::new(Trigger { namespace, name, spec, created_ms: function.created_ms });
    Some(Ok(Found { trigger, since_ms: revision.created_ms }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedules::tests::function;

    #[test]
    fn what_annotations_say() {
        let of = |pairs: &[(&str, &str)]| annotated(&function("hello", pairs));
        assert!(of(&[]).is_none() && of(&[("schedule", "* * * * *")]).is_none());
        assert!(of(&[("topic", "orders"), ("schedule", "* * * * *")]).is_none());
        for topic in ["cron-function", "orders, cron-function"] {
            let found = of(&[("topic", topic), ("schedule", "*/5 * * * *; 0 3 * * *")]).unwrap().unwrap();
            assert_eq!(found.trigger.spec.schedule.as_deref(), Some("*/5 * * * *; 0 3 * * *"));
            assert_eq!((found.trigger.name.as_str(), found.trigger.created_ms, found.since_ms), ("hello", 7, 9));
        }
        let why = of(&[("topic", "cron-function")]).unwrap().unwrap_err().to_string();
        assert!(why.contains("wants an annotation `schedule`"), "{why}");
        let why = of(&[("topic", "cron-function"), ("schedule", "* * 31 2 *")]).unwrap().unwrap_err().to_string();
        assert!(why.starts_with("annotation schedule: `* * 31 2 *` never comes"), "{why}");
    }
}
