#![allow(clippy::single_range_in_vec_init)]

use super::*;

const LEN: u64 = 64 * PAGE;

fn plan() -> MachinePlan {
    MachinePlan {
        arch: "test".into(),
        ram: vec![
            AddressRange::new(0, 16 * PAGE),
            AddressRange::new(1 << 32, 48 * PAGE),
        ],
        reserved: Vec::new(),
        kernel_window: AddressRange::new(0, 16 * PAGE),
        mmio_window: AddressRange::new(1 << 40, 1 << 20),
        devices: Vec::new(),
        pci: None,
        vcpus: 1,
        lean: None,
        cmdline: String::new(),
        vmgenid: None,
        remarks: Vec::new(),
    }
}

fn bytes(pages: &[Range<u64>]) -> Ranges {
    let bytes = pages.iter().map(|run| run.start * PAGE..run.end * PAGE);
    bytes.collect()
}

fn chain(layers: &[&[Range<u64>]]) -> MemoryLayout {
    let mut layout = MemoryLayout::whole(&plan().ram, "memory-0");
    layout.page = PAGE;
    for (number, pages) in (1..).zip(layers) {
        layout.layers.push(Layer {
            file: format!("memory-{number}"),
            runs: bytes(pages),
        });
    }
    layout
}

#[test]
fn the_layer_that_is_above_has_a_page() {
    let layout = chain(&[&[2..6, 10..20], &[0..1, 4..12, 63..64], &[5..6]]);
    assert_eq!(layout.check(&plan()), Ok(()));
    let pages = |part: &Part| {
        (
            part.at / PAGE,
            part.len / PAGE,
            part.file,
            part.place / PAGE,
        )
    };
    let parts: Vec<_> = layout.parts().iter().map(pages).collect();
    let expected = [
        (0, 1, 2, 0),
        (1, 1, 0, 1),
        (2, 2, 1, 0),
        (4, 1, 2, 1),
        (5, 1, 3, 0),
        (6, 6, 2, 3),
        (12, 8, 1, 6),
        (20, 43, 0, 20),
        (63, 1, 2, 9),
    ];
    assert_eq!(parts, expected);
    assert_eq!(layout.layers[1].len(), 14 * PAGE);
}

#[test]
fn a_chain_ends_before_it_is_too_much() {
    let mut layout = chain(&[]);
    for layers in 2..=MOST_LAYERS {
        layout = layout
            .above(&format!("m{layers}"), bytes(&[0..1, 2..3]))
            .unwrap();
        assert_eq!(layout.layers.len(), layers);
        assert_eq!(layout.check(&plan()), Ok(()));
    }
    assert!(layout.above("one-more", Vec::new()).is_none());

    let many: Ranges = (0..20_000)
        .map(|page| 2 * page * PAGE..(2 * page + 1) * PAGE)
        .collect();
    let mut layout = chain(&[]);
    let mut runs = 1;
    while let Some(more) = layout.above(&format!("m{runs}"), many.clone()) {
        let last = more.last().map_or(0, |layer| layer.runs.len());
        assert!(last <= (MOST_RUNS - runs) / SHARE && last > 0);
        runs += last;
        layout = more;
    }
    assert!(runs <= MOST_RUNS && layout.layers.len() > 5);
}

/// A state is hostile.
#[test]
fn r29_runs_that_cannot_be_are_refused() {
    let refused = |pages: &[Range<u64>]| chain(&[pages]).check(&plan()).is_err();
    assert!(!refused(&[]) && !refused(&[0..64]) && !refused(&[0..1, 1..2]));
    // Outside, empty, backwards, not in order, one over the other.
    for pages in [
        &[0..65][..],
        &[64..65],
        &[1..1],
        &[Range { start: 3, end: 2 }],
        &[4..5, 2..3],
        &[0..3, 2..4],
        &[0..1 << 51],
    ] {
        assert!(refused(pages), "{pages:?}");
    }
    let wrong: [fn(&mut MemoryLayout); 13] = [
        |layout| layout.layers[1].runs[0].start += 512,
        |layout| layout.layers[1].runs[0].end += 1,
        |layout| layout.layers[1].runs[0].end = u64::MAX,
        |layout| layout.page = 512,
        |layout| layout.page = 3 * PAGE,
        |layout| layout.page = 2 * PAGE,
        |layout| layout.page = 1 << 20,
        |layout| layout.layers[1].file = "memory-0".to_owned(),
        |layout| layout.layers[1].file = "../memory".to_owned(),
        |layout| layout.layers.clear(),
        |layout| layout.layers[0].runs[0].end -= PAGE,
        |layout| layout.regions[0].base = PAGE,
        |layout| {
            let page = layout.layers[1].clone();
            layout.layers.extend(vec![page; MOST_LAYERS]);
        },
    ];
    for (number, change) in wrong.into_iter().enumerate() {
        let mut layout = chain(&[&[1..2]]);
        assert_eq!(layout.check(&plan()), Ok(()));
        change(&mut layout);
        assert!(layout.check(&plan()).is_err(), "{number}");
    }
    let mut layout = chain(&[&[]]);
    layout.layers[1].runs = vec![0..PAGE; MOST_RUNS];
    let refused = layout.check(&plan()).err().unwrap_or_default();
    assert!(refused.contains("too many pieces"), "{refused}");
}

#[test]
fn files_that_are_not_as_long_as_their_runs_are_refused() {
    let layout = chain(&[&[2..6, 10..20]]);
    let file = |len: u64| {
        let file = tempfile::tempfile();
        file.and_then(|file| file.set_len(len).map(|()| file))
    };
    let check = |lens: &[u64]| {
        let files = lens
            .iter()
            .map(|len| file(*len))
            .collect::<io::Result<Vec<_>>>();
        files.and_then(|files| layout.check_files(&files))
    };
    assert!(check(&[LEN, 14 * PAGE]).is_ok());
    for wrong in [
        &[LEN][..],
        &[LEN, 13 * PAGE],
        &[14 * PAGE, LEN],
        &[LEN, 14 * PAGE, 0],
    ] {
        assert!(check(wrong).is_err(), "{wrong:?}");
    }
}
