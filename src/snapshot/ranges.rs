//! Lists of ranges: in order, not empty, and none touches the next one.

use std::ops::Range;

pub(super) type Ranges = Vec<Range<u64>>;

/// Puts a range behind those of a list, or onto the last one where it begins within it or at its end.
pub(super) fn push(list: &mut Ranges, range: Range<u64>) {
    match list.last_mut() {
        _ if range.is_empty() => {}
        Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
        _ => list.push(range),
    }
}

/// What is in any of two lists.
pub(super) fn union(one: Ranges, other: Ranges) -> Ranges {
    let mut all = Vec::with_capacity(one.len() + other.len());
    let mut other = other.into_iter().peekable();
    for range in one {
        while let Some(before) = other.next_if(|other| other.start <= range.start) {
            push(&mut all, before);
        }
        push(&mut all, range);
    }
    other.for_each(|range| push(&mut all, range));
    all
}

/// What is in both lists.
pub(super) fn both(one: impl Iterator<Item = Range<u64>>, other: &[Range<u64>]) -> Ranges {
    let mut found = Vec::new();
    let mut other = other;
    for run in one {
        // Those that end before it are of no later one either.
        let before = other.partition_point(|range| range.end <= run.start);
        other = other.get(before..).unwrap_or_default();
        let those = other.iter().take_while(|other| other.start < run.end);
        found.extend(those.map(|other| run.start.max(other.start)..run.end.min(other.end)));
    }
    found
}

/// What of the range from 0 to `len` is in none.
pub(super) fn gaps(list: &[Range<u64>], len: u64) -> Ranges {
    let ends = list.iter().map(|range| range.end);
    let starts = list.iter().map(|range| range.start);
    let gaps = std::iter::once(0).chain(ends).zip(starts.chain([len]));
    let gaps = gaps.map(|(start, end)| start..end);
    gaps.filter(|gap| !gap.is_empty()).collect()
}

/// At most so many ranges, at least one, that have all that is in the list: what lies between some of them too, and that as
/// little as possible.
pub(super) fn at_most(list: Ranges, most: usize) -> Ranges {
    let gap = |pair: &[Range<u64>]| match pair {
        [one, next] => next.start - one.end,
        _ => 0,
    };
    let mut gaps: Vec<_> = list.windows(2).map(gap).collect();
    // So many gaps, the largest ones, may stay.
    let stay = most.max(1) - 1;
    if gaps.len() <= stay {
        return list;
    }
    let (_, smallest, _) = gaps.select_nth_unstable_by(stay, |one, other| other.cmp(one));
    // All that are as large as the largest one that goes, go.
    let closed = *smallest;
    let mut all: Ranges = Vec::with_capacity(most);
    for range in list {
        match all.last_mut() {
            Some(last) if range.start - last.end <= closed => last.end = range.end,
            _ => all.push(range),
        }
    }
    all
}

/// Their bytes.
pub(super) fn total(list: &[Range<u64>]) -> u64 {
    list.iter().map(|range| range.end - range.start).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The numbers in a list.
    fn all(list: &[Range<u64>]) -> Vec<u64> {
        list.iter().cloned().flatten().collect()
    }

    fn list(numbers: &[bool]) -> Ranges {
        let mut list = Vec::new();
        for (number, _) in (0..).zip(numbers).filter(|(_, is_in)| **is_in) {
            push(&mut list, number..number + 1);
        }
        list
    }

    proptest! {
        #[test]
        fn lists_are_what_sets_are(
            numbers in proptest::collection::vec(any::<(bool, bool)>(), 0..60),
            most in 1_usize..8,
        ) {
            let (one, other): (Vec<_>, Vec<_>) = numbers.iter().copied().unzip();
            let len = numbers.len() as u64;
            let (one, other) = (list(&one), list(&other));
            let are = |is_in: fn((bool, bool)) -> bool| {
                let numbers = (0..).zip(&numbers).filter(|(_, number)| is_in(**number));
                numbers.map(|(number, _)| number).collect::<Vec<u64>>()
            };
            prop_assert_eq!(all(&one).len() as u64, total(&one));
            prop_assert_eq!(all(&gaps(&one, len)), are(|(one, _)| !one));
            prop_assert_eq!(all(&both(one.clone().into_iter(), &other)), are(|(one, other)| one && other));
            let union = union(one.clone(), other);
            prop_assert_eq!(all(&union), are(|(one, other)| one || other));
            prop_assert!(union.windows(2).all(|pair| pair[0].end < pair[1].start));
            let fewer = at_most(one.clone(), most);
            prop_assert!(fewer.len() <= most);
            prop_assert_eq!(both(fewer.clone().into_iter(), &one), one.clone());
            prop_assert!(one.len() > most || fewer == one);
        }
    }

    #[test]
    fn the_smallest_gaps_are_closed() {
        let list = vec![0..1, 2..3, 13..14, 16..17, 37..38];
        assert_eq!(at_most(list.clone(), 3), [0..3, 13..17, 37..38]);
        assert_eq!(at_most(list.clone(), 2), [0..17, 37..38]);
        assert_eq!(at_most(list.clone(), 0), at_most(list, 1));
        assert_eq!(at_most(Vec::new(), 1), []);
    }
}
