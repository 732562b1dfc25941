//! The processor time of a thread, for others to ask: without /proc, and also when the thread has ended.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use devices::{Counter, micros};
use rustix::thread::gettid;
use rustix::time::{ClockId, clock_gettime};

/// The processor time of one thread after the other, once they have begun to tell.
#[derive(Debug, Default)]
pub(crate) struct CpuTime {
    /// The thread's number (gettid(2)); 0 before its begin and after its end.
    thread: AtomicI32,
    /// What those before it had.
    before_us: Counter,
    /// What all had at the end of the last one.
    ended_us: Counter,
}

/// As long as this is there, its thread can be asked.
#[derive(Debug)]
pub(crate) struct Told<'a>(&'a CpuTime);

impl CpuTime {
    /// The calling thread is the one, after those that have ended.
    pub(crate) fn begin(&self) -> Told<'_> {
        self.before_us.set(self.ended_us.get());
        let thread = gettid().as_raw_nonzero().get();
        self.thread.store(thread, Ordering::Release);
        Told(self)
    }

    /// User and system time so far in microseconds, the time in the guest included.
    pub(crate) fn micros(&self) -> u64 {
        match self.thread.load(Ordering::Acquire) {
            0 => self.ended_us.get(),
            // It may end meanwhile, and has left its time then.
            thread => of_thread(thread).map_or_else(
                || self.ended_us.get(),
                |time| self.before_us.get() + micros(time),
            ),
        }
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let time = Duration::try_from(time).unwrap_or_default();
        self.0.ended_us.set(self.0.before_us.get() + micros(time));
        self.0.thread.store(0, Ordering::Release);
    }
}

/// `None` when there is no such thread in this process any more.
fn of_thread(thread: i32) -> Option<Duration> {
    // include/linux/posix-timers_types.h: the complement of the number, the flag of a thread's clock, and the
    // clock that counts what the scheduler gave.
    const PER_THREAD: libc::clockid_t = 4;
    const SCHEDULED: libc::clockid_t = 2;
    let clock = !thread << 3 | PER_THREAD | SCHEDULED;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes a timespec, or refuses a clock that there is not.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanos = u32::try_from(time.tv_nsec).ok()?;
    (result == 0).then(|| Duration::new(seconds, nanos))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn the_time_of_a_thread_grows_while_it_computes_and_stays_when_it_is_gone() {
        let time = CpuTime::default();
        assert_eq!(time.micros(), 0);
        let (seen, last) = thread::scope(|scope| {
            let (enough, end) = mpsc::channel::<()>();
            let thread = scope.spawn(|| {
                let _told = time.begin();
                let end = end;
                // It computes until the sender is gone.
                while end.try_recv() == Err(mpsc::TryRecvError::Empty) {}
            });
            while time.micros() < 10_000 {
                thread::yield_now();
            }
            let seen = time.micros();
            drop(enough);
            thread.join().unwrap();
            (seen, time.micros())
        });
        assert!(last >= seen, "{last} {seen}");
        assert_eq!(time.micros(), last);
        thread::scope(|scope| {
            let next = scope.spawn(|| {
                let _told = time.begin();
                time.micros()
            });
            assert!(
                next.join().unwrap() >= last,
                "the time of the first one counts on"
            );
        });
        assert!(time.micros() >= last);
        // Beyond the largest number that a thread can have (PID_MAX_LIMIT).
        assert_eq!(of_thread((1 << 22) + 1), None);
    }

    #[test]
    fn a_thread_that_waits_has_no_time() {
        let time = CpuTime::default();
        thread::scope(|scope| {
            let (wake, waiting) = mpsc::channel::<()>();
            let (begun, has_begun) = mpsc::channel();
            let told = &time;
            scope.spawn(move || {
                let _told = told.begin();
                begun.send(()).unwrap();
                waiting.recv()
            });
            has_begun.recv().unwrap();
            let before = time.micros();
            // As long as another one computes.
            let own = CpuTime::default();
            let _told = own.begin();
            while own.micros() < 50_000 {}
            assert!(time.micros() - before < 25_000);
            drop(wake);
        });
    }
}
