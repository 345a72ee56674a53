//! Lines on their way to standard error: a bounded queue, and a thread that writes. Whoever logs never waits.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use tracing::warn;

/// Bytes of lines that wait. What comes on top is lost.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Lines that wait, however short.
const WAITING_LINES_MAX: usize = 16_384;
/// How often it is said that lines were lost, where lines can be written in between.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Before standard error is tried again, where whoever shares it has said that writes do not wait (`O_NONBLOCK`).
const BUSY_PAUSE: Duration = Duration::from_millis(10);
const THREAD: &str = "log";

/// The queue.
pub(super) struct Lines {
    queue: Mutex<Queue>,
    /// A line waits.
    filled: Condvar,
    /// All are written.
    emptied: Condvar,
}

struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether the thread has a line in hand.
    is_writing: bool,
    lost: u64,
    /// Of these, those of which nothing was said yet.
    unsaid: u64,
    /// Lost lines, for whoever exports them.
    counter: Option<Counter>,
}

impl Lines {
    pub(super) const fn new() -> Self {
        let queue =
            Queue { lines: VecDeque::new(), bytes: 0, is_writing: false, lost: 0, unsaid: 0, counter: None };
        Self { queue: Mutex::new(queue), filled: Condvar::new(), emptied: Condvar::new() }
    }

    /// Begins to write, on a thread of its own: a pipe that nobody reads stops that one only.
    pub(super) fn write_to(&'static self, out: impl Write + Send + 'static) -> io::Result<()> {
        std::thread::Builder::new().name(THREAD.to_owned()).spawn(|| self.write_forever(out)).map(drop)
    }

    pub(super) fn flush(&self, within: Duration) {
        let until = Instant::now() + within;
        let mut queue = self.lock();
        while queue.is_writing || !queue.lines.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.emptied.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn count_in(&self, counter: Counter) {
        let mut queue = self.lock();
        counter.inc_by(queue.lost);
        queue.counter = Some(counter);
    }

    fn push(&self, line: &[u8]) {
        // What the thread itself says of lost lines finds its place.
        let is_own = std::thread::current().name() == Some(THREAD);
        let mut queue = self.lock();
        let has_room = queue.bytes + line.len() <= WAITING_BYTES_MAX && queue.lines.len() < WAITING_LINES_MAX;
        if has_room || is_own {
            queue.bytes += line.len();
            queue.lines.push_back(line.to_vec());
            self.filled.notify_one();
        } else {
            queue.lose();
        }
    }

    fn write_forever(&self, mut out: impl Write) {
        let mut said: Option<Instant> = None;
        loop {
            let written = write_line(&mut out, &self.next());
            let mut queue = self.lock();
            if written.is_err() {
                queue.lose();
                continue;
            }
            if 0 < queue.unsaid && said.is_none_or(|said| SAY_EVERY <= said.elapsed()) {
                let lost = std::mem::take(&mut queue.unsaid);
                drop(queue);
                said = Some(Instant::now());
                warn!(lost, "log lines could not be written in time, or at all, and are lost");
            }
        }
    }

    /// The next line, waiting for one.
    fn next(&self) -> Vec<u8> {
        let mut queue = self.lock();
        queue.is_writing = false;
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.bytes -= line.len();
                queue.is_writing = true;
                return line;
            }
            self.emptied.notify_all();
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn lose(&mut self) {
        self.lost += 1;
        self.unsaid += 1;
        if let Some(counter) = &self.counter {
            counter.inc();
        }
    }
}

fn write_line(out: &mut impl Write, line: &[u8]) -> io::Result<()> {
    let mut rest = line;
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::park_timeout(BUSY_PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Write for &'static Lines {
    /// Takes a whole line, which is how the subscriber hands them over.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::{Lines, WAITING_BYTES_MAX};
    use prometheus_client::metrics::counter::Counter;

    /// Hands each line to the test, and does what the test says then.
    struct Told(mpsc::Sender<Vec<u8>>, mpsc::Receiver<io::Result<()>>);

    impl Write for Told {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.send(line.to_vec()).unwrap();
            self.1.recv().unwrap().map(|()| line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_nobody_takes_are_lost_and_counted_and_nobody_waits() {
        let lines: &'static Lines = Box::leak(Box::new(Lines::new()));
        let ((line, written), (go, may_go)) = (mpsc::channel(), mpsc::channel());
        lines.write_to(Told(line, may_go)).unwrap();
        lines.push(b"first");
        assert_eq!(written.recv().unwrap(), b"first");
        // The writer is stuck in it. As many as fit wait, one more is lost.
        let large = vec![b'x'; WAITING_BYTES_MAX / 4];
        (0..5).for_each(|_| lines.push(&large));
        lines.flush(Duration::from_millis(1));
        let counter = Counter::default();
        lines.count_in(counter.clone());
        assert_eq!(counter.get(), 1);
        go.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        for _ in 0..4 {
            assert_eq!(written.recv().unwrap().len(), large.len());
            go.send(Ok(())).unwrap();
        }
        lines.flush(Duration::from_secs(10));
        assert_eq!((counter.get(), lines.lock().bytes), (2, 0), "the one that could not be written, too");
    }
}
