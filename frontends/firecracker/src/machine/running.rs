//! A machine that runs: what it can be asked, and what can be changed.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use vmm_reference::{
    BalloonStatistics, Change, Command, CommandError, Direction, Happening, Hinting, NewFile,
    Query, Reply, Report, Subscription, VmHandle,
};

use super::configuration::Configuration;
use super::disk;
use super::limits::changed;
use super::snapshots::{self, Saved};
use super::start::{BALLOON, disk_id, mib, net_id, target};
use super::terms::{Options, Outcome, took};
use crate::api::Action;
use crate::api::answers::{BalloonStats, HintingStatus};
use crate::api::bodies::{BlockDeviceUpdateConfig, NetworkInterfaceUpdateConfig};
use crate::api::snapshots::{CreateSnapshotParams, SnapshotType};
use crate::metrics::{self, Ask};
use crate::texts::{
    CreateFault, DriveUpdate, Fault, NO_DEVICE, NO_HINTING, NO_STATISTICS, STATISTICS_SWITCHED,
    refused,
};

/// How long a machine that was built may take until it runs.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pages are counted in this many bytes.
const PAGE: u64 = 4096;

/// A machine that was started.
#[derive(Debug)]
pub(super) struct Running {
    handle: VmHandle,
    /// What happens to it, until it was seen to run.
    events: Option<Subscription>,
    pub(super) is_paused: bool,
    /// Ctrl-Alt-Del was typed while the guest stood still, and reaches it when it goes on.
    is_typed: bool,
    /// The machine that it was saved as last, or that it was.
    saved: Option<Saved>,
}

impl Running {
    pub(super) fn new(handle: VmHandle, events: Subscription) -> Self {
        Self {
            handle,
            events: Some(events),
            is_paused: false,
            is_typed: false,
            saved: None,
        }
    }

    /// By which it is asked, once it runs.
    pub(super) fn handle(&mut self) -> &VmHandle {
        self.wait();
        &self.handle
    }

    /// It was a saved machine.
    pub(super) fn goes_on(&mut self, saved: Saved, is_paused: bool) {
        self.wait();
        self.saved = Some(saved);
        self.is_paused = is_paused;
    }

    /// Waits until its thread has come to run it, or it has ended.
    pub(super) fn wait(&mut self) {
        let Some(events) = self.events.take() else {
            return;
        };
        let deadline = Instant::now() + PATIENCE;
        while let Some(event) = events.wait(deadline.saturating_duration_since(Instant::now())) {
            if matches!(
                event.what,
                Happening::State { .. } | Happening::Ended { .. }
            ) {
                return;
            }
        }
    }

    /// Does what a request asks for after the start.
    pub(super) fn carry_out(
        &mut self,
        action: Action,
        configuration: &mut Configuration,
        options: &Options,
    ) -> Result<Outcome, Fault> {
        self.wait();
        match action {
            Action::Pause => self.pause(true)?,
            Action::Resume => self.pause(false)?,
            Action::FlushMetrics => metrics::write(Ask::Machine)
                .map_err(|error| Fault::Internal(format!("Metrics error: {error}")))?,
            Action::SendCtrlAltDel if self.is_paused => self.is_typed = true,
            Action::SendCtrlAltDel => self.ctrl_alt_del()?,
            Action::UpdateDrive(update) => {
                self.update_drive(update, configuration)
                    .map_err(Fault::DriveUpdate)?;
            }
            Action::UpdateNetwork(update) => {
                self.update_network(&update, configuration)
                    .map_err(Fault::NetUpdate)?;
            }
            Action::UpdateBalloon(update) => {
                let amount = update.amount_mib;
                self.update_balloon(amount, configuration)
                    .map_err(Fault::BalloonUpdate)?;
            }
            Action::UpdateBalloonStatistics(update) => {
                let seconds = update.stats_polling_interval_s;
                self.update_statistics(seconds, configuration)
                    .map_err(Fault::BalloonUpdate)?;
            }
            Action::GetBalloonStatistics => {
                let statistics = self.statistics(configuration).map_err(Fault::Internal)?;
                return Ok(Outcome::json(&statistics));
            }
            Action::StartHinting(command) => {
                let hinting = if command.acknowledge_on_stop {
                    Hinting::Start
                } else {
                    Hinting::Hold
                };
                self.hint(hinting, configuration)
                    .map_err(Fault::BalloonUpdate)?;
            }
            Action::StopHinting => {
                self.hint(Hinting::Stop, configuration)
                    .map_err(Fault::BalloonUpdate)?;
            }
            Action::GetHintingStatus => {
                let status = self.hinting(configuration).map_err(Fault::BalloonUpdate)?;
                return Ok(Outcome::json(&status));
            }
            Action::CreateSnapshot(params) => self.create(&params, configuration, options)?,
            Action::SetDrive(_) | Action::SetNetwork(_) | Action::Unplug => {
                return Err(match options.pci {
                    true => Fault::NotSupported("there is no hot-plug".to_owned()),
                    false => Fault::NoPci,
                });
            }
            _ => return Err(Fault::AfterStart),
        }
        Ok(Outcome::Done)
    }

    fn ask(&self, command: Command) -> Result<Reply, String> {
        self.handle
            .command(command)
            .map_err(|error| refused(&error))
    }

    fn change(&self, device: &str, change: Change) -> Result<Reply, String> {
        let device = device.to_owned();
        self.ask(Command::Device { device, change })
    }

    fn pause(&mut self, on: bool) -> Result<(), Fault> {
        let begun = Instant::now();
        let (command, name, keys) = if on {
            (Command::Pause {}, "pause vm", ["pause_vm", "vmm_pause_vm"])
        } else {
            (
                Command::Resume {},
                "resume vm",
                ["resume_vm", "vmm_resume_vm"],
            )
        };
        self.ask(command).map_err(Fault::Internal)?;
        self.is_paused = on;
        if !on && std::mem::take(&mut self.is_typed) {
            self.ctrl_alt_del()?;
        }
        took(name, &keys, begun);
        Ok(())
    }

    fn create(
        &mut self,
        params: &CreateSnapshotParams,
        configuration: &Configuration,
        options: &Options,
    ) -> Result<(), CreateFault> {
        if !self.is_paused {
            return Err(CreateFault::Running);
        }
        let begun = Instant::now();
        let last = self.saved.as_ref();
        let saved = snapshots::create(&self.handle, params, last, configuration, options)?;
        self.saved = Some(saved);
        let (name, keys) = match params.snapshot_type {
            SnapshotType::Full => (
                "create full snapshot",
                ["full_create_snapshot", "vmm_full_create_snapshot"],
            ),
            SnapshotType::Diff => (
                "create diff snapshot",
                ["diff_create_snapshot", "vmm_diff_create_snapshot"],
            ),
        };
        took(name, &keys, begun);
        Ok(())
    }

    fn ctrl_alt_del(&self) -> Result<(), Fault> {
        self.ask(Command::CtrlAltDel {}).map_err(Fault::Internal)?;
        Ok(())
    }

    fn update_drive(
        &self,
        update: BlockDeviceUpdateConfig,
        configuration: &mut Configuration,
    ) -> Result<(), DriveUpdate> {
        let mut drives = configuration.drives.iter_mut();
        let drive = drives
            .find(|drive| drive.config.drive_id == update.drive_id)
            .ok_or(DriveUpdate::NoDevice)?;
        if update.path_on_host.is_none() && update.rate_limiter.is_none() {
            return Err(DriveUpdate::Nothing);
        }
        let device = disk_id(&update.drive_id);
        metrics::count("block", "update_count");
        if let Some(path) = update.path_on_host {
            let file = disk::open(&path, drive.is_read_only()).map_err(|error| {
                metrics::count("block", "update_fails");
                let path = path.clone();
                DriveUpdate::File { error, path }
            })?;
            let change = Change::File(NewFile::new(&path));
            let command = Command::Device {
                device: device.clone(),
                change,
            };
            let replaced = self.handle.command_with(command, vec![OwnedFd::from(file)]);
            replaced.map_err(|error| of_file(&error, &path))?;
            drive.config.path_on_host = Some(path);
        }
        let limits = drive.config.rate_limiter;
        if let Some((limits, change)) = changed(limits, update.rate_limiter, None) {
            self.change(&device, change).map_err(DriveUpdate::Refused)?;
            drive.config.rate_limiter = limits;
        }
        Ok(())
    }

    fn update_network(
        &self,
        update: &NetworkInterfaceUpdateConfig,
        configuration: &mut Configuration,
    ) -> Result<(), String> {
        let mut networks = configuration.networks.iter_mut();
        let network = networks
            .find(|network| network.config.iface_id == update.iface_id)
            .ok_or_else(|| NO_DEVICE.to_owned())?;
        let device = net_id(&update.iface_id);
        let config = &mut network.config;
        for (now, update, direction) in [
            (
                &mut config.rx_rate_limiter,
                update.rx_rate_limiter,
                Direction::Rx,
            ),
            (
                &mut config.tx_rate_limiter,
                update.tx_rate_limiter,
                Direction::Tx,
            ),
        ] {
            if let Some((limits, change)) = changed(*now, update, Some(direction)) {
                self.change(&device, change)?;
                *now = limits;
            }
        }
        Ok(())
    }

    fn update_balloon(&self, amount: u32, configuration: &mut Configuration) -> Result<(), String> {
        let memory = configuration.machine.mem_size_mib;
        let balloon = configuration.balloon.as_mut().ok_or(NO_DEVICE)?;
        if amount as usize > memory {
            return Err(format!(
                "Balloon: Requested memory should be less than {amount}MiB"
            ));
        }
        self.change(BALLOON, Change::Target(target(memory, amount)))?;
        balloon.amount_mib = amount;
        Ok(())
    }

    fn update_statistics(
        &self,
        seconds: u16,
        configuration: &mut Configuration,
    ) -> Result<(), String> {
        let balloon = configuration.balloon.as_mut().ok_or(NO_DEVICE)?;
        let before = balloon.stats_polling_interval_s;
        if (before == 0) != (seconds == 0) {
            return Err(STATISTICS_SWITCHED.to_owned());
        }
        self.change(BALLOON, Change::StatsInterval(seconds.into()))?;
        balloon.stats_polling_interval_s = seconds;
        Ok(())
    }

    fn statistics(&self, configuration: &Configuration) -> Result<BalloonStats, String> {
        let balloon = configuration.balloon.as_ref().ok_or(NO_DEVICE)?;
        if balloon.stats_polling_interval_s == 0 {
            return Err(NO_STATISTICS.to_owned());
        }
        match self.query(Query::Statistics)? {
            Report::Statistics(statistics) => Ok(stats(&statistics)),
            _ => Err(NO_STATISTICS.to_owned()),
        }
    }

    fn query(&self, query: Query) -> Result<Report, String> {
        let device = BALLOON.to_owned();
        match self.ask(Command::Query { device, query })? {
            Reply::Device(report) => Ok(report),
            _ => Err(NO_DEVICE.to_owned()),
        }
    }

    fn hint(&self, hinting: Hinting, configuration: &Configuration) -> Result<(), String> {
        check_hinting(configuration)?;
        self.change(BALLOON, Change::Hinting(hinting)).map(drop)
    }

    fn hinting(&self, configuration: &Configuration) -> Result<HintingStatus, String> {
        check_hinting(configuration)?;
        match self.query(Query::Hinting)? {
            Report::Hinting(status) => Ok(HintingStatus {
                host_cmd: status.host_command,
                guest_cmd: status.guest_command,
            }),
            _ => Err(NO_HINTING.to_owned()),
        }
    }
}

fn check_hinting(configuration: &Configuration) -> Result<(), String> {
    let balloon = configuration.balloon.as_ref().ok_or(NO_DEVICE)?;
    match balloon.free_page_hinting {
        true => Ok(()),
        false => Err(NO_HINTING.to_owned()),
    }
}

/// Why a disk's file was not replaced.
fn of_file(error: &CommandError, path: &str) -> DriveUpdate {
    metrics::count("block", "update_fails");
    DriveUpdate::File {
        error: io::Error::other(refused(error)),
        path: path.to_owned(),
    }
}

/// Statistics by the names of the API.
fn stats(statistics: &BalloonStatistics) -> BalloonStats {
    let pages = |bytes: u64| u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
    let guest = statistics.guest.clone().unwrap_or_default();
    BalloonStats {
        target_pages: pages(statistics.asked_bytes),
        actual_pages: pages(statistics.given_bytes),
        target_mib: mib(statistics.asked_bytes),
        actual_mib: mib(statistics.given_bytes),
        swap_in: guest.swap_in_bytes,
        swap_out: guest.swap_out_bytes,
        major_faults: guest.major_faults,
        minor_faults: guest.minor_faults,
        free_memory: guest.free_bytes,
        total_memory: guest.total_bytes,
        available_memory: guest.available_bytes,
        disk_caches: guest.cache_bytes,
        hugetlb_allocations: guest.hugetlb_allocations,
        hugetlb_failures: guest.hugetlb_failures,
        oom_kill: guest.oom_kills,
        alloc_stall: guest.allocation_stalls,
        async_scan: guest.async_scanned_pages,
        direct_scan: guest.direct_scanned_pages,
        async_reclaim: guest.async_reclaimed_pages,
        direct_reclaim: guest.direct_reclaimed_pages,
    }
}
