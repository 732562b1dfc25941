//! What a running machine can be asked, and what it answers: plain data, the same for a program that embeds the
//! library and for a client of the control socket.

use std::fmt;
use std::io;

use devices::{Change, ChangeError, Query, Report};
use serde::{Deserialize, Serialize};

use crate::confinement::ConfinementReport;
#[cfg(feature = "control")]
use crate::control::fields;
#[cfg(feature = "snapshot")]
use crate::control::forking::{ForkWish, Forked};
use crate::control::metrics::Metrics;
#[cfg(feature = "snapshot")]
use crate::control::saving::{DiskCopy, SavedForm, SavingStatus, Written};

/// Something to ask a machine for, by [`VmHandle::command`](crate::VmHandle::command).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Command {
    /// The guest stands still, and nothing changes its memory: every vCPU has left it, every device has answered
    /// what it had begun. A machine that does not run yet begins so.
    Pause {},
    /// A paused guest goes on.
    Resume {},
    /// The VM ends now.
    Stop {},
    /// The guest is asked to power itself off. The VM ends when it has not done so in time.
    Shutdown {
        /// How long it may take, in seconds; without it, what the configuration says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "control", serde(deserialize_with = "fields::timeout"))]
        timeout_s: Option<u32>,
    },
    /// Ctrl-Alt-Del is typed, where the guest listens to a keyboard
    /// ([`VmConfig::keyboard`](crate::VmConfig::keyboard)): it begins anew, or whatever it does then. Elsewhere its power
    /// button is pressed. Nothing else happens, whatever the guest makes of it.
    CtrlAltDel {},
    /// The machine starts again, with fresh memory and the same devices, as after a reset by the guest.
    Reset {},
    /// What state the machine and its devices are in.
    Status {},
    /// What the machine has done so far.
    Metrics {},
    /// What every vCPU of a paused machine is at.
    Registers {},
    /// The machine is written to files, of which open descriptors come beside the command: an empty one for its state,
    /// and an empty one for the content of its RAM. A guest that runs stands still meanwhile.
    #[cfg(feature = "snapshot")]
    Snapshot {
        /// The name that the file for the RAM will have, beside that for the state.
        memory: String,
        /// The id of the saved machine that was published last. If the VM knows that one, the file for the RAM gets what
        /// changed since, and the state names the files of that one too; else it gets all. Without an id nothing is
        /// remembered for the next time.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<String>,
        /// Disks that are copied meanwhile: an open empty file for each comes beside the command, behind the others and in
        /// this order. The saved machine has the copies instead of the files.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[cfg_attr(feature = "control", serde(deserialize_with = "fields::copies"))]
        copies: Vec<DiskCopy>,
        /// What the file for the RAM gets, and whether it has to be empty.
        #[serde(default, skip_serializing_if = "SavedForm::is_default")]
        #[cfg_attr(feature = "control", serde(deserialize_with = "fields::form"))]
        form: SavedForm,
        /// What the saved machine shall know for whoever restores it ([`Snapshot::note`](crate::Snapshot::note)): any text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    /// The machine becomes two: a copy of it goes on as a process of its own, with what comes open beside the command
    /// (docs/fork.md). Its RAM is shared until one of the two writes to it. Only a program that takes forks
    /// ([`Machine::run_until_fork`](crate::Machine::run_until_fork)) carries it out.
    #[cfg(feature = "snapshot")]
    Fork(ForkWish),
    /// A device is changed while it is there; the change stays when the guest starts again.
    Device {
        /// The device's id, as [`Command::Status`] tells it.
        #[cfg_attr(feature = "control", serde(deserialize_with = "fields::device"))]
        device: String,
        /// What is changed.
        #[cfg_attr(feature = "control", serde(deserialize_with = "fields::change"))]
        change: Change,
    },
    /// A device tells something.
    Query {
        /// The device's id, as [`Command::Status`] tells it.
        #[cfg_attr(feature = "control", serde(deserialize_with = "fields::device"))]
        device: String,
        /// What it tells.
        #[cfg_attr(feature = "control", serde(deserialize_with = "fields::query"))]
        query: Query,
    },
}

impl Command {
    /// The names of all.
    #[cfg_attr(not(feature = "control"), allow(dead_code))]
    pub(crate) const NAMES: &[&str] = &[
        "pause",
        "resume",
        "stop",
        "shutdown",
        "ctrl-alt-del",
        "reset",
        "status",
        "metrics",
        "registers",
        #[cfg(feature = "snapshot")]
        "snapshot",
        #[cfg(feature = "snapshot")]
        "fork",
        "device",
        "query",
    ];

    /// How many open descriptors come beside it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        if let Self::Device {
            change: Change::File(file),
            ..
        } = self
        {
            return 1 + usize::from(file.twice);
        }
        #[cfg(feature = "snapshot")]
        if let Self::Snapshot { copies, .. } = self {
            return 2 + copies.len();
        }
        #[cfg(feature = "snapshot")]
        if let Self::Fork(wish) = self {
            return wish.descriptors();
        }
        0
    }

    /// Its name on the control socket.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pause {} => "pause",
            Self::Resume {} => "resume",
            Self::Stop {} => "stop",
            Self::Shutdown { .. } => "shutdown",
            Self::CtrlAltDel {} => "ctrl-alt-del",
            Self::Reset {} => "reset",
            Self::Status {} => "status",
            Self::Metrics {} => "metrics",
            Self::Registers {} => "registers",
            #[cfg(feature = "snapshot")]
            Self::Snapshot { .. } => "snapshot",
            #[cfg(feature = "snapshot")]
            Self::Fork(_) => "fork",
            Self::Device { .. } => "device",
            Self::Query { .. } => "query",
        }
    }

    /// Whether it makes sense in a state: the one table of what is legal when.
    #[must_use]
    pub fn is_legal(&self, state: State) -> bool {
        match (self, state) {
            (Self::Status {}, _) => true,
            (Self::Device { .. } | Self::Query { .. }, state) => {
                matches!(state, State::Running | State::Paused)
            }
            (Self::Metrics {}, state) => state != State::Created,
            // Those of a guest that runs are gone when they are told.
            (Self::Registers {}, state) => state == State::Paused,
            #[cfg(feature = "snapshot")]
            (Self::Snapshot { .. } | Self::Fork(_), state) => {
                matches!(state, State::Running | State::Paused)
            }
            (_, State::Ended) => false,
            // Pausing what is paused and resuming what runs changes nothing.
            (Self::Pause {} | Self::Resume {} | Self::Stop {}, _) => true,
            // A guest that stands still cannot hear of its power button, or its keyboard.
            (Self::Shutdown { .. } | Self::CtrlAltDel {} | Self::Reset {}, state) => {
                state == State::Running
            }
        }
    }

    /// Whether it leaves a machine that is written just now as it is, or ends it.
    #[cfg(feature = "snapshot")]
    pub(crate) fn is_legal_while_saving(&self) -> bool {
        match self {
            Self::Status {} | Self::Metrics {} | Self::Registers {} | Self::Query { .. } => true,
            Self::Stop {} | Self::Shutdown { .. } => true,
            Self::Pause {} | Self::Resume {} | Self::CtrlAltDel {} | Self::Reset {} => false,
            Self::Snapshot { .. } | Self::Fork(_) | Self::Device { .. } => false,
        }
    }
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum State {
    /// It was built and does not run yet.
    Created,
    /// The guest runs.
    Running,
    /// The guest stands still.
    Paused,
    /// The VM has ended.
    Ended,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ended => "ended",
        })
    }
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
#[non_exhaustive]
pub enum Reply {
    /// To [`Command::Status`].
    Status(Status),
    /// To [`Command::Metrics`].
    Metrics(Metrics),
    /// To [`Command::Registers`].
    Registers {
        /// One for each vCPU, in their order.
        vcpus: Vec<VcpuRegisters>,
    },
    /// To [`Command::Snapshot`].
    #[cfg(feature = "snapshot")]
    Snapshot(Written),
    /// To [`Command::Fork`].
    #[cfg(feature = "snapshot")]
    Forked(Forked),
    /// To [`Command::Query`].
    Device(Report),
    /// It was done; the machine is in this state now.
    Done {
        /// The state afterwards.
        state: State,
    },
}

/// A machine and its devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Status {
    /// What it does.
    pub state: State,
    /// Number of vCPUs; 0 before it was built and after its end.
    pub vcpus: u32,
    /// Guest RAM in bytes.
    pub memory_bytes: u64,
    /// How often the guest has started again.
    pub restarts: u64,
    /// Its devices.
    pub devices: Vec<DeviceStatus>,
    /// What its process has given up; none where nobody has asked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<ConfinementReport>,
    /// How far it is written, while it is saved.
    #[cfg(feature = "snapshot")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving: Option<SavingStatus>,
}

impl Status {
    /// That of a machine that nobody runs.
    pub(crate) fn without_machine(state: State, restarts: u64) -> Self {
        Self {
            state,
            vcpus: 0,
            memory_bytes: 0,
            restarts,
            devices: Vec::new(),
            sandbox: None,
            #[cfg(feature = "snapshot")]
            saving: None,
        }
    }
}

/// A device that commands can name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct DeviceStatus {
    /// Its name.
    pub id: String,
    /// What it is: `blk`, `net`, `vsock`, `console`, `rng` or `balloon`.
    pub kind: String,
    /// `idle`: no driver uses it; `running`; `needs-reset`: its driver broke a rule; `lost`: a fault of the VMM.
    pub state: String,
}

/// A vCPU of a paused machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct VcpuRegisters {
    /// Its number.
    pub id: u32,
    /// Its registers, several lines for people, as in the report of a crash.
    pub report: String,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The machine is in a state in which the command makes no sense.
    #[error("{command} is not possible while the machine is {state}")]
    State {
        /// The command's name.
        command: &'static str,
        /// The machine's state.
        state: State,
    },
    /// The guest was asked to power itself off, and does so.
    #[error("{0} is not possible: the guest was asked to power off")]
    ShuttingDown(&'static str),
    /// Other descriptors came beside the command than it takes.
    #[error("{command} takes {takes} open descriptors beside it here, and {given} came")]
    Descriptors {
        /// The command's name.
        command: &'static str,
        /// How many it takes.
        takes: usize,
        /// How many there were.
        given: usize,
    },
    /// The machine ended before it came to the command.
    #[error("the machine ended before it came to {0}")]
    Ended(&'static str),
    /// No device has this id.
    #[error("no device has the id {device:?}; there are {}", list(.ids))]
    NoDevice {
        /// The id.
        device: String,
        /// Those that there are.
        ids: Vec<String>,
    },
    /// The device was not changed, or did not tell, since its kind has no such thing.
    #[error("{device} has no {change}: it is a device of the kind {kind}")]
    Foreign {
        /// The device's id.
        device: String,
        /// Its kind, as in [`DeviceStatus`].
        kind: &'static str,
        /// What was to be changed or told.
        change: &'static str,
    },
    /// The device was not changed.
    #[error("the {change} of {device} cannot be changed")]
    Device {
        /// The device's id.
        device: String,
        /// What was to be changed.
        change: &'static str,
        /// Why not.
        #[source]
        source: ChangeError,
    },
    /// The device tells nothing.
    #[error("{device} does not tell its {query}")]
    Query {
        /// The device's id.
        device: String,
        /// What was asked for.
        query: &'static str,
        /// Why not.
        #[source]
        source: ChangeError,
    },
    /// The machine is saved just now, or disks are copied for a fork.
    #[cfg(feature = "snapshot")]
    #[error(
        "{0} is not possible while the machine is saved, or copied for a fork: wait for that, or stop it"
    )]
    Saving(&'static str),
    /// The machine has something that cannot be saved.
    #[error("the machine cannot be saved: {0}")]
    NotSaved(String),
    /// The machine was not forked, or its fork has ended before its guest went on. The machine goes on as before.
    #[cfg(feature = "snapshot")]
    #[error("the machine is not forked: {0}")]
    NotForked(String),
    /// The machine has neither a keyboard that its guest listens to nor a power button.
    #[error(
        "{0} is not possible: the guest listens to no keyboard, and the machine has no power button"
    )]
    NoKeyboard(&'static str),
    /// A machine that goes on where a saved one was has no kernel to begin with.
    #[error("{0} is not possible: the machine was restored, and has no kernel to begin with")]
    NoKernel(&'static str),
    /// [`Machine::without_new_machines`](crate::Machine::without_new_machines) was called.
    #[error("{0} is not possible: the machine is to be the only one, and has given up /dev/kvm")]
    NoNewMachine(&'static str),
    /// The host refused what it takes.
    #[error("the host refused what {command} takes")]
    Host {
        /// The command's name.
        command: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Ids in a sentence.
fn list(ids: &[String]) -> String {
    match ids {
        [] => "none".to_owned(),
        ids => ids.join(", "),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use devices::{Hinting, Link, TerminalSize};

    use super::*;

    #[test]
    fn the_table_of_what_is_legal_when() {
        use State::{Created, Ended, Paused, Running};
        let device = Command::Device {
            device: "blk0".to_owned(),
            change: Change::Target(1),
        };
        let query = Command::Query {
            device: "balloon0".to_owned(),
            query: Query::Statistics,
        };
        let legal: [(Command, &[State]); 13] = [
            (Command::Fork(ForkWish::default()), &[Running, Paused]),
            (device, &[Running, Paused]),
            (query, &[Running, Paused]),
            (Command::Pause {}, &[Created, Running, Paused]),
            (Command::Resume {}, &[Created, Running, Paused]),
            (Command::Stop {}, &[Created, Running, Paused]),
            (Command::Shutdown { timeout_s: None }, &[Running]),
            (Command::CtrlAltDel {}, &[Running]),
            (Command::Reset {}, &[Running]),
            (Command::Metrics {}, &[Running, Paused, Ended]),
            (Command::Registers {}, &[Paused]),
            (
                Command::Snapshot {
                    memory: "m".to_owned(),
                    since: None,
                    copies: Vec::new(),
                    form: SavedForm::Layer,
                    note: None,
                },
                &[Running, Paused],
            ),
            (Command::Status {}, &[Created, Running, Paused, Ended]),
        ];
        for (command, states) in legal {
            for state in [Created, Running, Paused, Ended] {
                let expected = states.contains(&state);
                assert_eq!(command.is_legal(state), expected, "{command:?} {state}");
                let value = serde_json::to_value(&command).unwrap();
                assert_eq!(value["command"], command.name());
            }
        }
    }

    #[test]
    fn every_command_is_on_the_list() {
        // serde names those there are, in a message.
        let error = serde_json::from_str::<Command>(r#"{"command":""}"#).unwrap_err();
        let text = error.to_string();
        let known: Vec<_> = text.split('`').skip(3).step_by(2).collect();
        assert_eq!(known, Command::NAMES);
    }

    #[test]
    fn a_device_and_one_change_of_it() {
        let limits = crate::Limits::default().with_bw(1 << 20);
        let size = TerminalSize {
            columns: 80,
            rows: 25,
        };
        for (text, expected) in [
            (r#"{"limits":{"bw":"1M"}}"#, Change::Limits(limits)),
            (r#"{"limits":{}}"#, Change::Limits(crate::Limits::default())),
            (r#"{"link":"down"}"#, Change::Link(Link::Down)),
            (r#"{"target":4096}"#, Change::Target(4096)),
            (r#"{"size":{"columns":80,"rows":25}}"#, Change::Size(size)),
            (r#"{"hinting":"hold"}"#, Change::Hinting(Hinting::Hold)),
            (r#"{"stats-interval":5}"#, Change::StatsInterval(5)),
        ] {
            let text = format!(r#"{{"command":"device","device":"x","change":{text}}}"#);
            let command: Command = serde_json::from_str(&text).unwrap();
            let again = serde_json::to_string(&command).unwrap();
            assert_eq!(serde_json::from_str::<Command>(&again).unwrap(), command);
            let Command::Device { device, change } = command else {
                panic!("{text}")
            };
            assert_eq!((&*device, change), ("x", expected));
        }
        for change in [
            r#"{}"#,
            r#""limits""#,
            r#"{"limits":[1,2]}"#,
            r#"{"limits":{"bw":-1}}"#,
            r#"{"limits":{"bw":0}}"#,
            r#"{"limits":{"speed":1}}"#,
            r#"{"limits":{},"link":"up"}"#,
            r#"{"link":"sideways"}"#,
            r#"{"target":"much"}"#,
            r#"{"target":-1}"#,
            r#"{"size":{"columns":70000,"rows":1}}"#,
            r#"{"size":{"columns":80}}"#,
            r#"{"hinting":"status"}"#,
            r#"{"colour":"red"}"#,
        ] {
            let text = format!(r#"{{"command":"device","device":"x","change":{change}}}"#);
            assert!(serde_json::from_str::<Command>(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_answer_of_a_device_is_known_by_what_it_was_asked_for() {
        let text = r#"{"command":"query","device":"balloon0","query":"statistics"}"#;
        let command: Command = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&command).unwrap(), text);
        for wrong in ["colour", "Statistics"] {
            let text = text.replace("statistics", wrong);
            assert!(serde_json::from_str::<Command>(&text).is_err(), "{text}");
        }
        let reply = Reply::Device(Report::Statistics(Box::default()));
        let text = serde_json::to_string(&reply).unwrap();
        let expected = r#"{"statistics":{"asked_bytes":0,"given_bytes":0,"supported":false,"refreshing":false,"guest":null}}"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
        let text = r#"{"hinting":{"state":"held","supported":true,"host_command":2,"guest_command":0,"released_bytes":4096}}"#;
        let reply: Reply = serde_json::from_str(text).unwrap();
        assert!(matches!(reply, Reply::Device(Report::Hinting(_))));
        assert_eq!(serde_json::to_string(&reply).unwrap(), text);
    }

    #[test]
    fn a_command_is_a_flat_object_and_unknown_fields_are_refused() {
        let text = r#"{"command":"shutdown","timeout_s":5}"#;
        let command: Command = serde_json::from_str(text).unwrap();
        assert_eq!(command, Command::Shutdown { timeout_s: Some(5) });
        assert_eq!(serde_json::to_string(&command).unwrap(), text);
        for text in [
            r#"{"command":"pause","now":true}"#,
            r#"{"command":"explode"}"#,
            r#"{}"#,
        ] {
            assert!(serde_json::from_str::<Command>(text).is_err(), "{text}");
        }
    }
}
