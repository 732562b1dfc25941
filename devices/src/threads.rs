//! How threads are made: whoever runs the VM may do something in each before its work begins.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// What a thread does first. It gets what the thread is there for.
type Begin = Arc<dyn Fn(&'static str) + Send + Sync>;

/// Makes threads.
#[derive(Clone, Default)]
pub struct Threads(Option<Begin>);

impl Threads {
    /// Each thread calls `begin` first, with the role that it was made for.
    pub fn beginning_with(begin: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(begin)))
    }

    /// Makes a thread. `role` is what it is there for, `name` what the kernel calls it.
    ///
    /// # Errors
    /// When the host refuses one.
    pub fn spawn<T: Send + 'static>(
        &self,
        role: &'static str,
        name: impl Into<String>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let begin = self.0.clone();
        thread::Builder::new().name(name.into()).spawn(move || {
            if let Some(begin) = begin {
                begin(role);
            }
            work()
        })
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let begin = self.0.as_ref().map(|_| "a function");
        f.debug_tuple("Threads").field(&begin).finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_thread_begins_with_what_it_was_told_to() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let for_threads = Arc::clone(&seen);
        let threads = Threads::beginning_with(move |role| {
            let name = thread::current().name().unwrap().to_owned();
            for_threads.lock().unwrap().push((role, name));
        });
        let work = Arc::clone(&seen);
        let thread = threads.spawn("role", "name", move || work.lock().unwrap().len());
        assert_eq!(thread.unwrap().join().unwrap(), 1);
        assert_eq!(*seen.lock().unwrap(), [("role", "name".to_owned())]);
        let plain = Threads::default().spawn("role", "plain", || 7).unwrap();
        assert_eq!(plain.join().unwrap(), 7);
    }
}
