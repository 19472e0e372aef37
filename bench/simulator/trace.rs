//! A synthetic load of the shape that Shahrad et al. (ATC 2020) published of Azure Functions, drawn from a seed. Never decides anything.

use std::{f64::consts::TAU, time::Duration};

pub(crate) const DAY: f64 = 86_400.0;
/// Whoever is called more often than once in so many seconds is warm with everybody's policy, and not replayed call by call.
const HOT: f64 = 10.0;

/// One function and all of its calls.
pub(crate) struct Function {
    /// What an instance takes, in bytes.
    pub(crate) memory: u64,
    /// What a start takes.
    pub(crate) start: Duration,
    /// When each call begins and ends, in milliseconds, in the order of their beginnings. Empty for a hot one.
    pub(crate) calls: Vec<(u64, u64)>,
    /// Calls in all.
    pub(crate) count: u64,
}

/// A generator of numbers that look random: splitmix64.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Above 0, up to 1.
    fn share(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.share().ln()).sqrt() * (TAU * self.share()).cos()
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.share().ln()
    }
}

/// So many functions over so many days.
pub(crate) fn draw(seed: u64, functions: usize, days: f64) -> Vec<Function> {
    (0..functions)
        .map(|n| function(&mut Dice::new(seed ^ (n as u64 + 1).wrapping_mul(0xD6E8_FEB8_6659_FD93)), days))
        .collect()
}

fn function(dice: &mut Dice, days: f64) -> Function {
    let per_day = rate(dice.share());
    let memory = (170e6 * (0.35 * dice.normal()).exp()).clamp(100e6, 400e6) as u64;
    let start = Duration::from_secs_f64((0.3 * (0.9 * dice.normal()).exp()).clamp(0.02, 5.0));
    // Half of the functions take less than a second; a call of one function is much like the next.
    let takes = (0.7 * (1.5 * dice.normal()).exp()).clamp(0.005, 60.0);
    if DAY / per_day < HOT {
        return Function { memory, start, calls: Vec::new(), count: (per_day * days) as u64 };
    }
    let mut begins = match dice.share() {
        share if share < 0.5 => timer(dice, per_day, days),
        share if share < 0.8 => people(dice, per_day, days),
        _ => bursts(dice, per_day, days),
    };
    begins.retain(|at| (0.0..days * DAY).contains(at));
    begins.sort_by(f64::total_cmp);
    let ms = |seconds: f64| (seconds * 1000.0) as u64;
    let calls: Vec<_> = begins
        .iter()
        .map(|at| (ms(*at), ms(at + (takes * (0.3 * dice.normal()).exp()).min(300.0)).max(ms(*at) + 1)))
        .collect();
    Function { memory, start, count: calls.len() as u64, calls }
}

/// Calls per day by rank: over eight decades, 45 % of the functions once an hour or less, 81 % once a minute or less.
fn rate(rank: f64) -> f64 {
    const POINTS: [(f64, f64); 4] = [(0.0, 0.1), (0.45, 24.0), (0.81, 1440.0), (1.0, 1e7)];
    let at = POINTS.windows(2).find(|p| rank <= p[1].0).unwrap_or(&POINTS[2..]);
    let ((x0, y0), (x1, y1)) = (at[0], at[1]);
    y0 * (y1 / y0).powf((rank - x0) / (x1 - x0))
}

/// A timer: as regular as a crontab, and late by a little.
fn timer(dice: &mut Dice, per_day: f64, days: f64) -> Vec<f64> {
    const EVERY: [f64; 18] = [
        10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 3600.0, 7200.0, 14_400.0, 21_600.0,
        43_200.0, 86_400.0, 604_800.0,
    ];
    let wanted = DAY / per_day;
    let every = EVERY.into_iter().min_by(|a, b| (a / wanted).ln().abs().total_cmp(&(b / wanted).ln().abs()));
    let every = every.unwrap_or(wanted);
    let first = dice.share() * every;
    (0..)
        .map(|n| first + f64::from(n) * every)
        .take_while(|at| *at < days * DAY)
        .map(|at| at + dice.exponential(0.3))
        .collect()
}

/// Calls that know nothing of each other, more of them at noon than at night.
fn people(dice: &mut Dice, per_day: f64, days: f64) -> Vec<f64> {
    let (mut at, mut calls) = (0.0, Vec::new());
    let most = 1.8;
    while at < days * DAY {
        at += dice.exponential(DAY / per_day / most);
        let now = 1.0 - 0.8 * (TAU * at / DAY).cos();
        if dice.share() * most < now {
            calls.push(at);
        }
    }
    calls
}

/// Calls that come in groups.
fn bursts(dice: &mut Dice, per_day: f64, days: f64) -> Vec<f64> {
    let (size, apart) = (2.0 + dice.exponential(10.0), dice.exponential(10.0) + 0.5);
    let (mut at, mut calls) = (dice.exponential(DAY / per_day * size), Vec::new());
    while at < days * DAY {
        calls.push(at);
        at += if dice.share() < 1.0 / size { dice.exponential(DAY / per_day * size) } else { dice.exponential(apart) };
    }
    calls
}
