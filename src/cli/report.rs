//! What devices tell, for people.

use std::time::{Duration, Instant};

use vmm_reference::{BalloonStatistics, GuestStatistics, HintingState, HintingStatus, Report};

/// How long a guest may take for its statistics, before older ones have to do.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether the guest is about to answer what was asked at a time, and may still take for it.
pub(super) fn has_newer(report: &Report, asked: Instant) -> bool {
    let Report::Statistics(statistics) = report else {
        return false;
    };
    let waited = asked.elapsed();
    let age = statistics.guest.as_ref().map(|guest| guest.age_ms);
    let is_older = age.is_none_or(|age| u128::from(age) > waited.as_millis());
    statistics.refreshing && is_older && waited < PATIENCE
}

pub(super) fn text(report: &Report) -> String {
    match report {
        Report::Statistics(statistics) => statistics_text(statistics),
        Report::Hinting(status) => hinting_text(status),
        // What a later version tells besides.
        other => format!("{other:?}"),
    }
}

fn line(name: &str, value: &str) -> String {
    format!("{name:24} {value}\n")
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes >> 10)
}

fn statistics_text(statistics: &BalloonStatistics) -> String {
    let mut text = line("asked for", &kib(statistics.asked_bytes));
    text += &line("given", &kib(statistics.given_bytes));
    let guest = match &statistics.guest {
        Some(guest) => format!("{} ms old", guest.age_ms),
        None if statistics.supported => "none yet".to_owned(),
        None => "none: no driver of the guest gives any".to_owned(),
    };
    text += &line("statistics", &guest);
    if let Some(guest) = &statistics.guest {
        text += &guest_text(guest);
    }
    text.trim_end().to_owned()
}

fn guest_text(guest: &GuestStatistics) -> String {
    let bytes = [
        ("free", guest.free_bytes),
        ("available", guest.available_bytes),
        ("total", guest.total_bytes),
        ("caches", guest.cache_bytes),
        ("swapped in", guest.swap_in_bytes),
        ("swapped out", guest.swap_out_bytes),
    ];
    let numbers = [
        ("major faults", guest.major_faults),
        ("minor faults", guest.minor_faults),
        ("huge pages allocated", guest.hugetlb_allocations),
        ("huge pages refused", guest.hugetlb_failures),
        ("killed for memory", guest.oom_kills),
        ("allocations stalled", guest.allocation_stalls),
        ("pages scanned, async", guest.async_scanned_pages),
        ("pages scanned, direct", guest.direct_scanned_pages),
        ("pages reclaimed, async", guest.async_reclaimed_pages),
        ("pages reclaimed, direct", guest.direct_reclaimed_pages),
    ];
    let bytes = bytes.map(|(name, value)| (name, value.map(kib)));
    let numbers = numbers.map(|(name, value)| (name, value.map(|value| value.to_string())));
    let known = bytes.into_iter().chain(numbers);
    known
        .filter_map(|(name, value)| Some(line(name, &value?)))
        .collect()
}

fn hinting_text(status: &HintingStatus) -> String {
    let state = match status.state {
        HintingState::Idle if status.supported => "idle",
        HintingState::Idle => "idle: no driver of the guest takes part in it",
        HintingState::Waiting if status.supported => "asked for",
        HintingState::Waiting => "asked for, when the guest has a driver for it",
        HintingState::Running => "running",
        HintingState::Held => "held: the guest has named all, and waits for a stop",
        _ => "unknown",
    };
    let text = line("hinting", state) + &line("released", &kib(status.released_bytes));
    text.trim_end().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn report(json: &str) -> Report {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn statistics_are_a_line_each_and_what_is_unknown_is_not_there() {
        let told = report(
            r#"{"statistics":{"asked_bytes":67108864,"given_bytes":4096,"supported":true,
            "refreshing":true,"guest":{"age_ms":12,"free_bytes":2048,"major_faults":3}}}"#,
        );
        let expected = "asked for                65536 KiB\n\
             given                    4 KiB\n\
             statistics               12 ms old\n\
             free                     2 KiB\n\
             major faults             3";
        assert_eq!(text(&told), expected);
        for (supported, words) in [(true, "none yet"), (false, "none: no driver")] {
            let told = report(&format!(
                r#"{{"statistics":{{"asked_bytes":0,"given_bytes":0,"supported":{supported},
                "refreshing":false,"guest":null}}}}"#
            ));
            assert!(text(&told).contains(words), "{}", text(&told));
        }
    }

    #[test]
    fn a_guest_that_is_about_to_answer_is_waited_for_but_not_for_ever() {
        let told = |refreshing: bool, guest: &str| {
            report(&format!(
                r#"{{"statistics":{{"asked_bytes":0,"given_bytes":0,"supported":true,
                "refreshing":{refreshing},"guest":{guest}}}}}"#
            ))
        };
        let now = Instant::now();
        let old = r#"{"age_ms":60000}"#;
        assert!(has_newer(&told(true, old), now));
        assert!(has_newer(&told(true, "null"), now));
        assert!(!has_newer(&told(true, r#"{"age_ms":0}"#), now));
        assert!(!has_newer(&told(false, old), now));
        let long_ago = now.checked_sub(PATIENCE).unwrap();
        assert!(!has_newer(&told(true, old), long_ago));
    }

    #[test]
    fn hinting_is_told_with_what_came_of_it() {
        let told = report(
            r#"{"hinting":{"state":"running","supported":true,"host_command":2,
            "guest_command":2,"released_bytes":8192}}"#,
        );
        let expected = "hinting                  running\n\
             released                 8 KiB";
        assert_eq!(text(&told), expected);
    }
}
