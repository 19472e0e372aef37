//! An instance of another platform becomes this one's.
//!
//! Owns the steps, and the end of what cannot be taken over. It decides nothing: the record says what the instance is, and whoever
//! wants it or not hears of it as of any other.

use std::sync::Arc;

use taper_model::Mode;
use taper_watchdog::control::Channel;
use tokio::time::{Instant, timeout};

use super::{Instance, Keeper, LAST_LINES, MARGIN, Made, Record, assemble, in_words, orphans};
use crate::{host::Host, logs::Source, sandbox::Parked, spawner::Heir};

/// Takes over an instance that has outlived the platform that made it. Nothing where it has ended meanwhile, or cannot be taken over:
/// it is ended then, and its log says so.
pub(crate) async fn adopt(host: &Arc<Host>, heir: Heir) -> Option<(Arc<Instance>, Keeper)> {
    let Heir { record, parked } = heir;
    let Parked { control, listener, stdout, stderr, layout: _, life } = parked;
    let read = Record::read(&record).and_then(|record| record.revision().map(|revision| (record, Arc::new(revision))));
    let (record, revision) = match read {
        Ok(read) => read,
        Err(why) => {
            tracing::warn!(pid = life.pid(), why, "an instance of the platform before this one is ended");
            life.kill();
            let _ = timeout(MARGIN, life.gone()).await;
            return None;
        }
    };
    let (id, mode) = (record.id(), revision.spec.mode());
    let source = Source { instance: id.clone(), revision: revision.id.name(), mode };
    let mut collector = host.logs.collect(revision.id.function(), &source, stdout, stderr);
    let (leased, channel) = (host.lease(&record.lease).await, Channel::new(control));
    let taken = match (life.over(), leased, channel) {
        (Some(exit), _, _) => Err(format!("while no platform ran: {}", in_words(exit))),
        (None, Ok(lease), Ok(channel)) => Ok((lease, Arc::new(channel))),
        (None, Err(why), _) => Err(format!("it could not be adopted: {why}")),
        (None, _, Err(why)) => Err(format!("it could not be adopted: {why}")),
    };
    let (lease, channel) = match taken {
        Ok(taken) => taken,
        Err(why) => {
            life.kill();
            let _ = timeout(MARGIN, life.gone()).await;
            let _ = timeout(LAST_LINES, collector.finish()).await;
            let text = format!("the instance ended: {why}");
            host.logs.note(revision.id.function(), &id, &revision.id.name(), &text);
            return None;
        }
    };
    tracing::info!(instance = %id, "adopted from the platform before this one");
    let prepared = host.prepared_before(record.code.as_deref(), record.dependencies.as_deref());
    let (start, phases, rests, secrets) = (record.start(), record.phases(), record.rests, record.secrets);
    let (first, held) = (None, None);
    let made =
        Made { id, revision, start, phases, secrets, life, listener, channel, first, collector, lease, prepared, held };
    let socket = made.listener.clone();
    let (instance, keeper) = assemble(host, made);
    instance.rest(rests);
    if mode != Mode::Http {
        let until = Instant::now() + instance.revision.spec.timeout() + MARGIN;
        orphans::hold(&socket, &instance.run, instance.slots, keeper.fate.clone(), until);
    }
    Some((instance, keeper))
}
