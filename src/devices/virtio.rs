//! Makes the virtio devices of a configuration and puts them behind their transport.

// A build without some of them needs a part of this only.
#![cfg_attr(
    not(all(
        feature = "virtio-balloon",
        feature = "virtio-blk",
        feature = "virtio-console",
        feature = "virtio-net",
        feature = "virtio-vsock"
    )),
    allow(dead_code, unused_imports, unused_mut, unused_variables)
)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use arch::{ConfigPath, DevicePlan, GuestRam, VirtioKind};
use devices::Overflow;
use devices::config::{BalloonConfig, BlkConfig, NetConfig, VsockConfig};
use devices::descriptor::DiskFile;
use devices::virtio::{VirtioDevice, VirtioMmio};
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::config::NamedDevice;
use crate::console::Port;
use crate::devices::lines::{Lines, interrupt};
use crate::devices::opened::{Given, HostDevices, Lasting};
use crate::timeline::{Milestone, Timeline};
use crate::{Error, PlannedFor, VmConfig};

impl HostDevices {
    /// Opens the devices that a configuration asks for, but for what is `given`. Kinds that were left out of this build
    /// are none: [`VmConfig::check`] has refused them.
    pub(crate) fn open(
        config: &VmConfig,
        timeline: &Timeline,
        mut given: Given,
    ) -> Result<Self, Error> {
        let mut opened = Self::default();
        for NamedDevice {
            id, kind, place, ..
        } in config.named_devices()
        {
            let device: Option<Lasting> = match kind {
                #[cfg(feature = "virtio-blk")]
                VirtioKind::Block => {
                    let file = take(&mut given.files, &id);
                    let disk = |config| disk(place, config, timeline, file);
                    config.blk.get(place).map(disk).transpose()?
                }
                #[cfg(feature = "virtio-net")]
                VirtioKind::Net => {
                    let tap = take(&mut given.taps, &id);
                    let net = |config| net(place, config, tap);
                    config.net.get(place).map(net).transpose()?
                }
                #[cfg(feature = "virtio-vsock")]
                VirtioKind::Vsock => {
                    let socket = given.socket.take();
                    let vsock = |config| vsock(config, socket);
                    config.vsock.as_ref().map(vsock).transpose()?
                }
                #[cfg(feature = "virtio-console")]
                VirtioKind::Console => {
                    let (device, port) = console(config.console_overflow)?;
                    opened.console = Some(port);
                    Some(device)
                }
                #[cfg(feature = "virtio-rng")]
                VirtioKind::Rng => {
                    let rng = devices::virtio::Rng::new(&config.rng_limits);
                    Some(Box::new(rng.map_err(Error::host(
                        "cannot make a source of random bytes",
                    ))?))
                }
                #[cfg(feature = "virtio-balloon")]
                VirtioKind::Balloon => {
                    let ram = config.guest_memory.bytes();
                    let balloon = |config| balloon(config, ram);
                    config.balloon.as_ref().map(balloon).transpose()?
                }
                #[allow(unreachable_patterns)]
                _ => None,
            };
            opened.devices.extend(device.map(|device| (id, device)));
        }
        Ok(opened)
    }
}

/// What belongs to the device with this id.
fn take<T>(given: &mut Vec<(String, T)>, id: &str) -> Option<T> {
    let place = given.iter().position(|(other, _)| other == id)?;
    Some(given.swap_remove(place).1)
}

/// A virtio console, and the host's end of it.
#[cfg(feature = "virtio-console")]
fn console(overflow: Overflow) -> Result<(Lasting, Port), Error> {
    let failed = || Error::host("cannot make a virtio console");
    let room = crate::wake::eventfd()?;
    let for_device = room.try_clone().map_err(failed())?;
    let output = crate::console::Output::new()?;
    let sink = output.ring.clone();
    let device =
        devices::virtio::VirtioConsole::new(sink, overflow, for_device).map_err(failed())?;
    let (input, size) = (device.port(), device.port());
    let port = Port {
        receive: Box::new(move |bytes| input.receive(bytes)),
        room,
        resize: Some(Box::new(move |columns, rows| size.resize(columns, rows))),
        output,
    };
    Ok((Box::new(device), port))
}

/// Finds out whether the files that a configuration names, and the devices of this host, can be opened. Gives
/// remarks on what other programs have now.
pub(crate) fn check(config: &VmConfig, planned_for: PlannedFor) -> Result<Vec<String>, Error> {
    let here = planned_for == PlannedFor::ThisHost;
    #[allow(unused_mut)] // A build may lack all that can be in use.
    let mut busy: Vec<String> = Vec::new();
    #[cfg(feature = "virtio-blk")]
    for (place, disk) in config.blk.iter().enumerate() {
        let in_use = devices::virtio::Block::check(disk).map_err(refused_disk(place, disk))?;
        busy.extend(in_use.filter(|_| here).map(|error| {
            format!(
                "the disk {}: {error}, and is refused as long as it is",
                disk.path.display()
            )
        }));
        let mut before = config.blk.iter().take(place);
        let clash = |other: &BlkConfig| {
            let writes = !other.read_only || !disk.read_only;
            writes && is_same_file(&other.path, &disk.path)
        };
        // What the lock of one would say to the other.
        if before.any(clash) {
            return Err(refused_disk(place, disk)(
                devices::virtio::BlockError::InUse {
                    by: " by this process".to_owned(),
                    readers_only: false,
                    path: disk.path.clone(),
                },
            ));
        }
    }
    #[cfg(feature = "virtio-net")]
    for (place, net) in config.net.iter().enumerate() {
        let in_use = if here {
            devices::virtio::Net::check(net)
        } else {
            devices::virtio::Net::check_values(net).map(|()| None)
        };
        busy.extend(in_use.map_err(refused_net(place, net))?.map(|error| {
            format!("the network device {net}: {error}, and is refused as long as it is")
        }));
    }
    #[cfg(feature = "virtio-vsock")]
    if let (Some(vsock), true) = (&config.vsock, here) {
        match devices::virtio::Vsock::check(vsock) {
            Err(error @ devices::socket::SocketError::InUse) => busy.push(format!(
                "the socket {}: {error}, and it is refused as long as that is so",
                vsock.path.display()
            )),
            checked => checked.map_err(refused_vsock(vsock))?,
        }
    }
    Ok(busy)
}

/// Finds out whether descriptors that a configuration names are open ones of tap devices.
#[cfg(feature = "virtio-net")]
pub(crate) fn check_descriptors(config: &VmConfig) -> Result<(), Error> {
    for (place, net) in config.net.iter().enumerate() {
        if net.fd.is_some() {
            devices::virtio::Net::check(net).map_err(refused_net(place, net))?;
        }
    }
    Ok(())
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let file = |path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((file(one), file(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(feature = "virtio-blk")]
fn disk(
    place: usize,
    config: &BlkConfig,
    timeline: &Timeline,
    file: Option<DiskFile>,
) -> Result<Box<dyn VirtioDevice>, Error> {
    let opened = match file {
        Some(file) => devices::virtio::Block::on(file, config),
        None => devices::virtio::Block::open(config),
    };
    let mut disk = opened.map_err(refused_disk(place, config))?;
    let timeline = timeline.clone();
    disk.on_first_request(move || timeline.reach(Milestone::DiskRequest));
    Ok(Box::new(disk))
}

/// `place` is the disk's in the configuration.
#[cfg(feature = "virtio-blk")]
fn refused_disk(place: usize, config: &BlkConfig) -> impl Fn(devices::virtio::BlockError) -> Error {
    move |error| Error::Refused {
        field: ConfigPath::from("blk").item(place).key("path"),
        value: config.path.display().to_string(),
        cure: error.cure(),
        source: error.into(),
    }
}

/// Opens the host's tap device of this name for a network device with one pair of queues, or creates it. A program that
/// is to find out early what it may not open keeps the descriptor and names its number in the configuration
/// ([`NetConfig::with_fd`]).
///
/// # Errors
/// Names the tap device and the cause.
#[cfg(feature = "virtio-net")]
pub fn open_tap(name: &str) -> Result<OwnedFd, Error> {
    let config = NetConfig::default().with_tap(name);
    let mut queues = open_tap_queues(name, 1)?;
    queues
        .pop()
        .ok_or_else(|| refused_net(0, &config)(devices::virtio::NetError::NoQueueLeft))
}

/// The same for a network device with so many pairs of queues: a descriptor for each.
///
/// # Errors
/// Names the tap device and the cause.
#[cfg(feature = "virtio-net")]
pub fn open_tap_queues(name: &str, queues: u16) -> Result<Vec<OwnedFd>, Error> {
    let config = NetConfig::default().with_tap(name).with_queues(queues);
    devices::virtio::Net::open_tap(name, queues).map_err(refused_net(0, &config))
}

#[cfg(feature = "virtio-net")]
fn net(
    place: usize,
    config: &NetConfig,
    tap: Option<Vec<OwnedFd>>,
) -> Result<Box<dyn VirtioDevice>, Error> {
    let opened = match &tap {
        Some(queues) => {
            let queues: Vec<_> = queues.iter().map(AsFd::as_fd).collect();
            devices::virtio::Net::on_tap(&queues, config)
        }
        None => devices::virtio::Net::open(config),
    };
    let net = opened.map_err(refused_net(place, config))?;
    Ok(Box::new(net))
}

#[cfg(feature = "virtio-net")]
fn refused_net(place: usize, config: &NetConfig) -> impl Fn(devices::virtio::NetError) -> Error {
    move |error| {
        let (field, value) = match &error {
            devices::virtio::NetError::Mtu(mtu, _) => {
                let net = ConfigPath::from("net").item(place);
                (net.key("mtu"), mtu.to_string())
            }
            _ => crate::config::tap_of(place, config),
        };
        Error::Refused {
            field,
            value,
            cure: error.cure(),
            source: error.into(),
        }
    }
}

#[cfg(feature = "virtio-vsock")]
fn vsock(config: &VsockConfig, socket: Option<OwnedFd>) -> Result<Box<dyn VirtioDevice>, Error> {
    let opened = match socket {
        Some(socket) => devices::virtio::Vsock::on(socket, config),
        None => devices::virtio::Vsock::open(config),
    };
    let vsock = opened.map_err(refused_vsock(config))?;
    Ok(Box::new(vsock))
}

#[cfg(feature = "virtio-vsock")]
fn refused_vsock(config: &VsockConfig) -> impl Fn(devices::socket::SocketError) -> Error {
    |error| Error::Refused {
        field: ConfigPath::from("vsock").key("path"),
        value: config.path.display().to_string(),
        source: error.into(),
        cure: "name a socket that does not exist yet, with a short path, in a folder that can be \
               written"
            .to_owned(),
    }
}

#[cfg(feature = "virtio-balloon")]
fn balloon(config: &BalloonConfig, ram: u64) -> Result<Box<dyn VirtioDevice>, Error> {
    let balloon = devices::virtio::Balloon::new(config, ram);
    Ok(Box::new(balloon.map_err(Error::host(
        "cannot make a timer for the balloon",
    ))?))
}

/// Puts a device behind the transport that was planned for it.
pub(crate) fn carry(
    device: Box<dyn VirtioDevice>,
    planned: &DevicePlan,
    lines: &Lines<'_>,
    vm: &Arc<VmFd>,
    ram: &GuestRam,
) -> Result<Arc<VirtioMmio>, Error> {
    let line = interrupt(planned, lines)?;
    let notify = planned.range.base.checked_add(VirtioMmio::NOTIFY);
    let notify = notify.ok_or_else(|| not_made(planned)(io::ErrorKind::InvalidInput.into()))?;
    let address = IoEventAddress::Mmio(notify);
    let vm = Arc::clone(vm);
    let connect = Box::new(move |queue: u16, event: &EventFd, on| {
        let queue = u32::from(queue);
        let result = if on {
            vm.register_ioevent(event, &address, queue)
        } else {
            vm.unregister_ioevent(event, &address, queue)
        };
        result.map_err(io::Error::from)
    });
    let transport = VirtioMmio::new(device, ram.clone(), line, connect, &lines.threads);
    let transport = transport.map_err(not_made(planned))?;
    Ok(Arc::new(transport))
}

/// The host refuses what a device takes.
pub(crate) fn not_made(planned: &DevicePlan) -> impl FnOnce(io::Error) -> Error {
    let id = planned.id.as_deref().unwrap_or("virtio");
    Error::host(format!("cannot make the device {id}"))
}

#[cfg(all(
    test,
    feature = "virtio-balloon",
    feature = "virtio-blk",
    feature = "virtio-console",
    feature = "virtio-rng",
    feature = "virtio-vsock"
))]
#[allow(clippy::unwrap_used)]
mod tests {
    use devices::config::BalloonConfig;

    use super::*;

    #[test]
    fn a_device_has_as_many_messages_as_the_plan_gives_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("one"), [0; 512]).unwrap();
        fs::write(path("two"), [0; 512]).unwrap();
        for (reporting, hinting) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut balloon = BalloonConfig::default();
            balloon.free_page_reporting = reporting;
            balloon.free_page_hinting = hinting;
            let mut config = VmConfig::default()
                .with_disk(
                    format!("{},queues=4", path("one").display())
                        .parse()
                        .unwrap(),
                )
                .with_disk(path("two").display().to_string().parse().unwrap())
                .with_vsock(
                    format!("cid=3,path={}", path("v").display())
                        .parse()
                        .unwrap(),
                )
                .with_console();
            config.balloon = Some(balloon);
            let opened =
                HostDevices::open(&config, &Timeline::default(), Given::default()).unwrap();
            for (device, (id, opened)) in config.named_devices().iter().zip(&opened.devices) {
                assert_eq!(&device.id, id);
                let queues = u32::try_from(opened.queue_sizes().len()).unwrap();
                assert_eq!(config.queues(device), queues, "{id}");
            }
            assert_eq!(opened.devices.len(), 6);
        }
    }
}
