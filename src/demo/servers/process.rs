//! A server's process: started so that it dies with us, signalled without mistaking it for another.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, mpsc};
use std::time::Duration;
use std::{io, thread};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::oneshot;

use super::programs::User;
use super::{ServerError, system};

/// Longer than the kernel needs to take a killed process apart.
const DEAD_WITHIN: Duration = Duration::from_secs(10);

/// What to start.
pub(super) struct Launch<'a> {
    pub(super) setpriv: &'a Path,
    pub(super) program: &'a Path,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: &'a [(String, String)],
    pub(super) directory: &'a Path,
    pub(super) log: &'a Path,
    /// None: whoever we are.
    pub(super) user: Option<User>,
}

/// A running process and, for Postgres, its children. Killed and waited for when dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    handle: OwnedFd,
}

type Request = (Command, oneshot::Sender<io::Result<Child>>);

/// The thread that starts all servers. "Die with the parent" means the parent's *thread*: a server started from a worker of
/// a runtime, or from a test's own thread, would be killed when that ends. This one lives as long as the process.
static LAUNCHER: LazyLock<mpsc::Sender<Request>> = LazyLock::new(|| {
    let (sender, requests) = mpsc::channel::<Request>();
    let work = move || {
        for (mut command, reply) in requests {
            // Nobody waits any more: end what was started.
            if let Err(Ok(mut child)) = reply.send(command.spawn()) {
                drop(child.kill());
                drop(child.wait());
            }
        }
    };
    // Without the thread the channel is closed, and each start says so.
    drop(thread::Builder::new().name("server-launcher".to_owned()).spawn(work));
    sender
});

impl Process {
    pub(super) async fn start(launch: Launch<'_>) -> Result<Self, ServerError> {
        let what = format!("start {}", launch.program.display());
        let log = OpenOptions::new().create(true).append(true).open(launch.log).map_err(system(&what))?;
        let errors = log.try_clone().map_err(system(&what))?;
        let mut command = privileged(launch.setpriv, launch.user);
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(launch.program)
            .args(launch.arguments)
            .envs(launch.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(launch.directory)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Ctrl-C on the terminal is for us: whoever shows the demo still wants its servers then.
            .process_group(0);
        let (reply, answer) = oneshot::channel();
        let gone = || system(&what)(io::Error::other("the launching thread has ended"));
        LAUNCHER.send((command, reply)).map_err(|_closed| gone())?;
        let mut child = answer.await.map_err(|_closed| gone())?.map_err(system(&what))?;
        match open(child.id()) {
            Ok(handle) => Ok(Self { child, handle }),
            Err(source) => {
                drop(child.kill());
                drop(child.wait());
                Err(ServerError::System { what, source })
            }
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn is_alive(&self) -> bool {
        !has_ended(&self.handle, Duration::ZERO)
    }

    /// Sends a signal to the process alone.
    pub(super) fn signal(&self, signal: Signal) {
        // The only refusal possible is that it has ended, which the caller sees by looking.
        drop(pidfd_send_signal(&self.handle, signal));
    }

    /// Holds the process and its children where they are.
    pub(super) fn pause(&self) {
        for child in self.hold() {
            drop(pidfd_send_signal(&child, Signal::STOP));
        }
    }

    /// Lets all of them go on.
    pub(super) fn resume(&self) {
        for child in self.children() {
            drop(pidfd_send_signal(&child, Signal::CONT));
        }
        self.signal(Signal::CONT);
    }

    /// Kills the process and its children at once, and waits until they are gone.
    pub(super) fn kill(&mut self) {
        let children = self.hold();
        self.signal(Signal::KILL);
        for child in &children {
            drop(pidfd_send_signal(child, Signal::KILL));
        }
        drop(self.child.wait());
        for child in &children {
            has_ended(child, DEAD_WITHIN);
        }
    }

    /// Stops the process, so that it starts no more children and leaves the dead unburied, and returns its children.
    fn hold(&self) -> Vec<OwnedFd> {
        self.signal(Signal::STOP);
        // A running process takes the signal at its next turn: microseconds.
        while self.is_alive() && !matches!(state_of(self.id()), None | Some('T' | 't' | 'Z' | 'X')) {
            thread::yield_now();
        }
        self.children()
    }

    fn children(&self) -> Vec<OwnedFd> {
        children_of(self.id()).into_iter().filter_map(|id| open(id).ok()).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `setpriv`, changing to that user.
pub(super) fn privileged(setpriv: &Path, user: Option<User>) -> Command {
    let mut command = Command::new(setpriv);
    if let Some(User { uid, gid }) = user {
        command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
    }
    command
}

/// Runs a program to its end.
pub(super) async fn run(mut command: Command) -> Result<(), ServerError> {
    let program = Path::new(command.get_program()).to_path_buf();
    let arguments: PathBuf = command.get_args().collect();
    let name = format!("{} {}", program.display(), arguments.display());
    command.stdin(Stdio::null());
    let output = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(system(format!("run {name}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ServerError::Program { program: name, output: said })
}

fn open(id: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn has_ended(handle: &OwnedFd, within: Duration) -> bool {
    let within = Timespec { tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&within)).is_ok_and(|ready| 0 < ready)
}

/// The letter of the process's state, as in `ps`.
fn state_of(id: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    stat.rsplit_once(") ")?.1.chars().next()
}

fn children_of(id: u32) -> Vec<u32> {
    let listed = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}
