//! How large each set of a Deployment is to be next.

use serde_json::Value;

use super::Wish;
use super::sets::Sets;

/// `maxSurge` and `maxUnavailable` in pods: parts of the surge are rounded up, those of the other down, and both are not
/// 0 at once.
pub(super) fn fences(surge: &Value, unavailable: &Value, replicas: i64) -> (i64, i64) {
    let surge = share(surge, replicas, true);
    let unavailable = share(unavailable, replicas, false);
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    (surge, unavailable.min(replicas))
}

/// A number, or a part of `whole`.
pub(in super::super) fn share(value: &Value, whole: i64, up: bool) -> i64 {
    let number = match value {
        Value::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|digits| digits.parse().ok()).unwrap_or_default();
            let product = percent.saturating_mul(whole);
            if up { product.saturating_add(99) / 100 } else { product / 100 }
        }
        value => value.as_i64().unwrap_or_default(),
    };
    number.max(0)
}

/// One step of a rollout: the new set grows or, when it has all its room, the old ones shrink.
pub(super) fn roll(wish: &Wish, sets: &mut Sets) {
    let Some(newest) = sets.newest_at() else { return };
    let size = sets.at(newest).replicas();
    let wanted = if wish.recreate || size > wish.replicas {
        wish.replicas
    } else {
        let room = (wish.ceiling() - sets.held()).max(0);
        size + room.min(wish.replicas - size)
    };
    if wanted != size
        || sets.at(newest).desired() != Some(wish.replicas)
        || sets.at(newest).max() != Some(wish.ceiling())
    {
        sets.resize(newest, wanted, wish);
    }
    if wanted != size || wish.recreate {
        return;
    }
    shrink_old(wish, sets, newest);
}

/// First what is not available goes, then as much as `maxUnavailable` allows.
fn shrink_old(wish: &Wish, sets: &mut Sets, newest: usize) {
    let least = wish.replicas - wish.max_unavailable;
    let new_unavailable = sets.at(newest).replicas() - sets.at(newest).available();
    let mut room = sets.total() - least - new_unavailable;
    let old: Vec<usize> = sets.old().collect();
    for index in &old {
        let (size, available) = (sets.at(*index).replicas(), sets.at(*index).available());
        let broken = (size - available).min(room);
        if broken > 0 {
            sets.resize(*index, size - broken, wish);
            room -= broken;
        }
    }
    let available: i64 = sets.all().map(|set| set.available()).sum();
    let mut spare = (available - least).min(room);
    for index in &old {
        let size = sets.at(*index).replicas();
        let gives = size.min(spare);
        if gives > 0 {
            sets.resize(*index, size - gives, wish);
            spare -= gives;
        }
    }
}

/// Brings the sets to what a Deployment wants that was scaled: the only active one alone, several in proportion.
pub(super) fn scale(wish: &Wish, sets: &mut Sets) {
    let active = sets.active();
    if let [] | [_] = active[..] {
        let one = active.first().copied().or(sets.newest_at());
        if let Some(index) = one
            && (sets.at(index).replicas() != wish.replicas || sets.at(index).desired() != Some(wish.replicas))
        {
            sets.resize(index, wish.replicas, wish);
        }
        return;
    }
    // The new one has all it needs: the old ones are not needed any more.
    if let Some(newest) = sets.newest()
        && newest.desired() == Some(wish.replicas)
        && newest.replicas() == wish.replicas
        && newest.available() == wish.replicas
    {
        for index in sets.old().filter(|index| active.contains(index)).collect::<Vec<_>>() {
            sets.resize(index, 0, wish);
        }
        return;
    }
    if !wish.recreate {
        in_proportion(wish, sets, active);
    }
}

fn in_proportion(wish: &Wish, sets: &mut Sets, mut active: Vec<usize>) {
    let allowed = if wish.replicas > 0 { wish.ceiling() } else { 0 };
    let to_add = allowed - sets.total();
    // Growth begins with the newest of the largest, shrinking with the oldest.
    active.sort_by_key(|index| {
        let age = i64::try_from(*index).unwrap_or(i64::MAX);
        (-sets.at(*index).replicas(), if to_add > 0 { -age } else { age })
    });
    let mut left = to_add;
    let mut sizes: Vec<i64> = active
        .iter()
        .map(|index| {
            let size = sets.at(*index).replicas();
            let before = sets.at(*index).max().filter(|max| *max > 0).unwrap_or_else(|| sets.total().max(1));
            let part = rounded(size.saturating_mul(allowed), before) - size;
            let part = if to_add > 0 { part.clamp(0, left) } else { part.clamp(left, 0) };
            left -= part;
            size + part
        })
        .collect();
    if let Some(first) = sizes.first_mut() {
        *first = (*first + left).max(0);
    }
    for (index, size) in active.into_iter().zip(sizes) {
        sets.resize(index, size, wish);
    }
}

/// A quotient of numbers that are not negative, rounded half up.
fn rounded(number: i64, by: i64) -> i64 {
    number.saturating_mul(2).saturating_add(by) / by.saturating_mul(2)
}
