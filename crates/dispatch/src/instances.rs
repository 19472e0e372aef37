//! One revision's instances: which of them take calls, how many run on each, and which one is next. Knows no queue and no time.

use std::{collections::HashMap, sync::Arc};

use taper_model::InstanceId;
use taper_provider::Instance;

use crate::share::Slot;

/// The end of a list.
const NONE: u32 = u32::MAX;

/// The instances, with those that have a free slot in one list per number of running calls. Choosing, freeing and
/// withdrawing touch a constant number of entries however many instances there are.
#[derive(Default)]
pub(crate) struct Instances {
    entries: Vec<Option<Entry>>,
    vacant: Vec<u32>,
    keys: HashMap<InstanceId, u32>,
    /// `lists[n]`: the first of the instances that run `n` calls and have a free slot, the one used last in front.
    lists: Vec<u32>,
    /// Every list before this one is empty.
    least: usize,
    ready: u32,
    /// Of these, those with more than one slot.
    wide: u32,
    uses: u64,
}

struct Entry {
    instance: Arc<Instance>,
    service: Service,
    running: u32,
    /// The ticket that the next call got when this instance became ready: who has a smaller one waited for it.
    born: u64,
    /// Grows with every use: the smallest was used longest ago.
    used: u64,
    before: u32,
    after: u32,
}

/// Whether an instance takes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// It does.
    Serving,
    /// Not now; it may be back.
    Paused,
    /// It was retired or drains; it ends when its calls have ended.
    Leaving,
    /// A call could not be sent to it; it must be replaced.
    Condemned,
}

/// A slot that was taken.
pub(crate) struct Taken {
    pub(crate) slot: Slot,
    pub(crate) born: u64,
}

impl Instances {
    /// How many take calls.
    pub(crate) fn ready(&self) -> u32 {
        self.ready
    }

    /// Whether the rule of choice can tell no difference between free slots but when they were used last: there is one instance,
    /// or each has one slot.
    pub(crate) fn alike(&self) -> bool {
        self.ready <= 1 || self.wide == 0
    }

    /// How many there are, whether they take calls or not.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Adds a ready instance. One that is known already stays as it is, in service or not, with its running calls, but is back in
    /// service when it was paused. Gives the slots of a new one on which calls [linger](taper_model::Invoke::lingers): those of
    /// another platform, from which it came.
    pub(crate) fn add(&mut self, instance: Instance, born: u64) -> Vec<Slot> {
        if let Some(key) = self.keys.get(&instance.id) {
            self.resume(*key);
            return Vec::new();
        }
        let key = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.keys.insert(instance.id.clone(), key);
        let (instance, service) = (Arc::new(instance), Service::Serving);
        self.wide += u32::from(instance.slots.get() > 1);
        self.uses += 1;
        let running = instance.run.lingers().min(instance.slots.get());
        let lent = (0..running).map(|_| Slot { key, instance: instance.clone() }).collect();
        self.entries[key as usize] =
            Some(Entry { instance, service, running, born, used: self.uses, before: NONE, after: NONE });
        self.ready += 1;
        self.link(key);
        lent
    }

    /// Takes a slot of the instance with the fewest calls; among those, of the one used last.
    pub(crate) fn take(&mut self) -> Option<Taken> {
        while self.least < self.lists.len() && self.lists[self.least] == NONE {
            self.least += 1;
        }
        let key = *self.lists.get(self.least)?;
        self.unlink(key);
        self.uses += 1;
        let used = self.uses;
        let entry = self.entry(key);
        entry.running += 1;
        entry.used = used;
        let taken = Taken { slot: Slot { key, instance: entry.instance.clone() }, born: entry.born };
        self.link(key);
        Some(taken)
    }

    /// Gives a slot back; nothing changes when its instance is gone.
    pub(crate) fn free(&mut self, slot: &Slot) {
        if !self.is_here(slot) {
            return;
        }
        let key = slot.key;
        self.unlink(key);
        self.uses += 1;
        let used = self.uses;
        let entry = self.entry(key);
        entry.running -= 1;
        entry.used = used;
        self.link(key);
    }

    /// Takes a slot's instance out of service for good. True when it was in service until now, or was to be again.
    pub(crate) fn condemn(&mut self, slot: &Slot) -> bool {
        self.is_here(slot) && self.withdraw(slot.key, Service::Condemned)
    }

    /// Takes an instance out of service until it is added again.
    pub(crate) fn pause(&mut self, id: &InstanceId) {
        if let Some(key) = self.keys.get(id) {
            self.withdraw(*key, Service::Paused);
        }
    }

    fn resume(&mut self, key: u32) {
        let entry = self.entry(key);
        if entry.service == Service::Paused {
            entry.service = Service::Serving;
            let wide = entry.instance.slots.get() > 1;
            self.ready += 1;
            self.wide += u32::from(wide);
            self.link(key);
        }
    }

    /// Takes an instance out of service.
    pub(crate) fn drain(&mut self, id: &InstanceId) {
        if let Some(key) = self.keys.get(id) {
            self.withdraw(*key, Service::Leaving);
        }
    }

    /// Takes up to `count` of these instances out of service, those with the fewest calls first and of these those unused for longest.
    pub(crate) fn retire(&mut self, count: usize, these: impl Fn(&InstanceId) -> bool) -> Vec<InstanceId> {
        let in_service = |e: &&Entry| e.service == Service::Serving && these(&e.instance.id);
        let mut serving: Vec<_> = (0u32..)
            .zip(&self.entries)
            .filter_map(|(key, e)| e.as_ref().filter(in_service).map(|e| (e.running, e.used, key)))
            .collect();
        serving.sort_unstable();
        serving.truncate(count);
        let retire = |(_, _, key)| {
            self.withdraw(key, Service::Leaving);
            self.entry(key).instance.id.clone()
        };
        serving.into_iter().map(retire).collect()
    }

    /// Forgets an instance that is no more, and says what it was.
    pub(crate) fn remove(&mut self, id: &InstanceId) -> Option<Service> {
        let key = self.keys.remove(id)?;
        let service = self.entry(key).service;
        self.withdraw(key, Service::Leaving);
        self.entries[key as usize] = None;
        self.vacant.push(key);
        Some(service)
    }

    /// The instances that are not among these.
    pub(crate) fn others(&self, listed: &[Instance]) -> Vec<InstanceId> {
        let listed: std::collections::HashSet<_> = listed.iter().map(|i| &i.id).collect();
        self.keys.keys().filter(|id| !listed.contains(id)).cloned().collect()
    }

    fn is_here(&self, slot: &Slot) -> bool {
        self.entries[slot.key as usize].as_ref().is_some_and(|e| Arc::ptr_eq(&e.instance, &slot.instance))
    }

    fn entry(&mut self, key: u32) -> &mut Entry {
        self.entries[key as usize].as_mut().expect("keys in lists, in the index and in checked slots name an instance")
    }

    fn withdraw(&mut self, key: u32, to: Service) -> bool {
        match self.entry(key).service {
            Service::Serving => {}
            // It is out of service already, and from now on for good.
            Service::Paused => {
                self.entry(key).service = to;
                return to == Service::Condemned;
            }
            Service::Leaving | Service::Condemned => return false,
        }
        self.unlink(key);
        let entry = self.entry(key);
        entry.service = to;
        let wide = entry.instance.slots.get() > 1;
        self.ready -= 1;
        self.wide -= u32::from(wide);
        true
    }

    /// Puts an instance in front of its list, when it can take a call.
    fn link(&mut self, key: u32) {
        let entry = self.entry(key);
        if !entry.has_room() {
            return;
        }
        let level = entry.running as usize;
        if self.lists.len() <= level {
            self.lists.resize(level + 1, NONE);
        }
        let after = std::mem::replace(&mut self.lists[level], key);
        let entry = self.entry(key);
        (entry.before, entry.after) = (NONE, after);
        if after != NONE {
            self.entry(after).before = key;
        }
        self.least = self.least.min(level);
    }

    /// Takes an instance out of its list, when it is in one: it is, exactly when it can take a call.
    fn unlink(&mut self, key: u32) {
        let entry = self.entry(key);
        if !entry.has_room() {
            return;
        }
        let (level, before, after) = (entry.running as usize, entry.before, entry.after);
        match before {
            NONE => self.lists[level] = after,
            _ => self.entry(before).after = after,
        }
        if after != NONE {
            self.entry(after).before = before;
        }
    }
}

impl Entry {
    fn has_room(&self) -> bool {
        self.service == Service::Serving && self.running < self.instance.slots.get()
    }
}
