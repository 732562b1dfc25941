//! A guest that gives pages to the host between two times that it is saved: they are zeros wherever it goes on.

use std::path::Path;
use std::process::Stdio;

use super::{Running, SMALL, Wanderer};
use crate::common::faults::{may_handle, serve_all};
use crate::common::{Ended, finish, vmm};
use crate::{TRANSPORTS, passed, start_virtio};

impl Wanderer {
    fn with_balloon(transport: &str) -> Self {
        let mut wanderer = Self::new(|control| {
            // Its timer begins with the driver, on a vCPU's thread.
            let options = ["--balloon=stats-interval=1", control, SMALL];
            start_virtio("virtio_balloon", transport, &options)
        });
        assert_eq!(wanderer.line(), "filled\n");
        wanderer
    }

    /// Has the guest, which has 16 MiB, give so many pages in all.
    fn asks_for(&mut self, pages: u32) {
        let target = format!("{}K", (16 << 10) - 4 * pages);
        assert!(self.ctl(&["device", "balloon0", "target", &target]));
    }

    /// Saves what stands still, with `--diff`.
    fn saves_diff(&mut self) -> Ended {
        assert!(self.ctl(&["pause"]));
        let (control, saved) = (self.path("control"), self.path("saved"));
        let diff = ["ctl", &control, "snapshot", &saved, "--diff"];
        finish(vmm(&diff).spawn().unwrap())
    }

    /// Goes on in another process as it was saved.
    fn moves(&mut self, arguments: &[&str]) {
        assert!(self.ctl(&["stop"]));
        self.settle();
        let control = format!("--control={}", self.path("control"));
        let saved = self.path("saved");
        let mut restore = vmm(&[&["restore", &saved, &control], arguments].concat());
        self.child = Running::new(restore.stdin(Stdio::piped()));
        self.has_opened();
    }

    /// The guest takes all of them back.
    fn has_zeros_in(mut self, pages: u32) {
        self.asks_for(0);
        let lines = passed(self.child.finish());
        assert_eq!(lines, [format!("zeros in {pages} pages")]);
    }
}

#[test]
fn what_a_balloon_gave_is_zeros_in_the_layers_and_stays_so() {
    for transport in TRANSPORTS {
        let mut wanderer = Wanderer::with_balloon(transport);
        let first = wanderer.saves_diff();
        if !first.status.success() {
            assert!(first.stderr.contains("does not tell"), "{first:?}");
            assert!(std::env::var_os("CI").is_none(), "{first:?}");
            eprintln!("SKIPPED: {first:?}");
            return;
        }
        // Of memory without a file, and then of a private mapping of files.
        for (layer, pages) in [(2, 24), (3, 64)] {
            assert!(wanderer.ctl(&["resume"]));
            wanderer.asks_for(pages);
            assert_eq!(wanderer.line(), format!("given {pages}\n"));
            let told = wanderer.saves_diff();
            let expected = format!(", what changed (layer {layer}); ");
            assert!(told.stdout.contains(&expected), "{told:?}");
            wanderer.moves(&[]);
        }
        wanderer.has_zeros_in(64);
    }
}

#[test]
fn what_a_balloon_gave_is_not_brought_by_a_handler() {
    if !may_handle() {
        return;
    }
    let mut wanderer = Wanderer::with_balloon(TRANSPORTS[0]);
    let (socket, saved) = (wanderer.path("faults"), wanderer.path("saved"));
    assert!(wanderer.ctl(&["pause"]) && wanderer.ctl(&["snapshot", &saved]));
    serve_all(Path::new(&socket), saved.into());
    wanderer.moves(&[&format!("--memory=uffd={socket}")]);
    wanderer.asks_for(40);
    assert_eq!(wanderer.line(), "given 40\n");
    wanderer.has_zeros_in(40);
}
