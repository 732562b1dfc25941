//! Which queue of a balloon is for what.
//!
//! By the specification each queue has its number, whichever of the others there are (VIRTIO 1.3, 5.5.2). Drivers
//! that came before this was written, and among them every Linux, count through those whose feature they took. Both
//! are served: where the two differ, the last queue by the specification is one that the others do not have.

/// Feature bits (5.5.3).
pub(super) const STATS_VQ: u32 = 1;
pub(super) const FREE_PAGE_HINT: u32 = 3;
pub(super) const REPORTING: u32 = 5;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Numbers of pages that the guest gives.
    Inflate,
    /// Numbers of pages that it takes again.
    Deflate,
    /// Statistics of the guest.
    Statistics,
    /// Pages that are free now, when it is asked for them.
    Hints,
    /// Pages that it has freed, when it likes to tell.
    Reports,
}

/// What is counted of each, in their order.
pub(super) const NAMES: [&str; QUEUES.len()] =
    ["inflate", "deflate", "statistics", "hint", "report"];

/// By the specification's number, with the feature that a queue needs.
const QUEUES: [(Role, Option<u32>); 5] = [
    (Role::Inflate, None),
    (Role::Deflate, None),
    (Role::Statistics, Some(STATS_VQ)),
    (Role::Hints, Some(FREE_PAGE_HINT)),
    (Role::Reports, Some(REPORTING)),
];

fn exist(features: u64) -> impl Iterator<Item = (usize, Role)> {
    let has = move |feature: Option<u32>| feature.is_none_or(|bit| features & 1 << bit != 0);
    let all = QUEUES.into_iter().enumerate();
    all.filter_map(move |(number, (role, feature))| has(feature).then_some((number, role)))
}

/// How many queues a device has that offers these features: enough for both ways to count.
pub(super) fn count(offered: u64) -> usize {
    exist(offered).last().map_or(0, |(number, _)| number + 1)
}

/// Queues and roles of a driver.
#[derive(Debug)]
pub(super) struct Roles {
    /// Whether the driver has the specification's numbers.
    pub(super) by_specification: bool,
    queues: [Option<Role>; QUEUES.len()],
}

impl Roles {
    /// Of a driver that took these features, by which queues it has set up.
    pub(super) fn of(features: u64, mut is_set_up: impl FnMut(usize) -> bool) -> Self {
        let last = exist(features).last();
        Self::counted(features, last.is_some_and(|(number, _)| is_set_up(number)))
    }

    /// Of a driver whose way to count is known.
    pub(super) fn counted(features: u64, by_specification: bool) -> Self {
        let mut roles = Self {
            by_specification,
            queues: Default::default(),
        };
        for (place, (number, role)) in exist(features).enumerate() {
            let number = if by_specification { number } else { place };
            if let Some(slot) = roles.queues.get_mut(number) {
                *slot = Some(role);
            }
        }
        roles
    }

    /// What a queue is for; `None` for one that the driver should not have.
    pub(super) fn of_queue(&self, queue: usize) -> Option<Role> {
        self.queues.get(queue).copied().flatten()
    }

    /// The queue for something, if the driver has one.
    pub(super) fn queue(&self, wanted: Role) -> Option<usize> {
        self.queues.iter().position(|role| *role == Some(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::Role::{Deflate, Hints, Inflate, Reports, Statistics};
    use super::*;

    /// A set of features with the queues behind the first two: by the specification, and by Linux.
    type Set = (&'static [u32], [Option<Role>; 3], &'static [Role]);
    const SETS: [Set; 8] = [
        (&[], [None; 3], &[]),
        (&[1], [Some(Statistics), None, None], &[Statistics]),
        (&[3], [None, Some(Hints), None], &[Hints]),
        (&[5], [None, None, Some(Reports)], &[Reports]),
        (
            &[1, 3],
            [Some(Statistics), Some(Hints), None],
            &[Statistics, Hints],
        ),
        (
            &[1, 5],
            [Some(Statistics), None, Some(Reports)],
            &[Statistics, Reports],
        ),
        (
            &[3, 5],
            [None, Some(Hints), Some(Reports)],
            &[Hints, Reports],
        ),
        (
            &[1, 3, 5],
            [Some(Statistics), Some(Hints), Some(Reports)],
            &[Statistics, Hints, Reports],
        ),
    ];

    fn bits(set: &[u32]) -> u64 {
        set.iter().map(|bit| 1 << bit).sum()
    }

    #[test]
    fn queues_are_found_by_the_numbers_of_the_specification() {
        for (set, by_number, _) in SETS {
            let expected = [&[Some(Inflate), Some(Deflate)], &by_number[..]].concat();
            let roles = Roles::of(bits(set), |queue| expected[queue].is_some());
            let found: Vec<_> = (0..5).map(|queue| roles.of_queue(queue)).collect();
            assert_eq!(found, expected, "{set:?}");
            assert_eq!(roles.of_queue(5), None);
        }
    }

    #[test]
    fn queues_are_found_by_counting_those_that_there_are() {
        for (set, _, in_order) in SETS {
            let expected = [&[Inflate, Deflate], in_order].concat();
            let roles = Roles::of(bits(set), |queue| queue < expected.len());
            let found: Vec<_> = (0..6).map_while(|queue| roles.of_queue(queue)).collect();
            assert_eq!(found, expected, "{set:?}");
            for role in [Inflate, Deflate, Statistics, Hints, Reports] {
                let place = expected.iter().position(|other| *other == role);
                assert_eq!(roles.queue(role), place, "{set:?} {role:?}");
            }
        }
    }

    #[test]
    fn a_device_has_as_many_queues_as_either_way_of_counting_needs() {
        for (set, by_number, in_order) in SETS {
            let last = by_number.iter().rposition(Option::is_some);
            let expected = last.map_or(2, |last| last + 3);
            assert_eq!(count(bits(set)), expected, "{set:?}");
            assert!(2 + in_order.len() <= expected);
        }
    }
}
