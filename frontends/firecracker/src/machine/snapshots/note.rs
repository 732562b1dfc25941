//! A configuration as a note, and back.

use std::sync::{Arc, Mutex};

use super::super::configuration::{Configuration, Network, Vsock};
use super::super::disk::Drive;
use super::super::metadata;
use super::super::terms::Options;
use crate::api::bodies::MachineConfig;
use crate::mmds::Mmds;
use crate::note::Note;

/// The note of a machine whose file of memory has this mark.
pub(super) fn of(configuration: &Configuration, options: &Options, memory: &str) -> Note {
    let drives = configuration.drives.iter();
    let networks = configuration.networks.iter();
    let vsock = configuration.vsock.as_ref();
    Note {
        memory: memory.to_owned(),
        machine: configuration.machine.clone(),
        drives: drives.map(|drive| drive.config.clone()).collect(),
        networks: networks.map(|network| network.config.clone()).collect(),
        vsock: vsock.map(|vsock| vsock.config.clone()),
        balloon: configuration.balloon.clone(),
        entropy: configuration.entropy.clone(),
        mmds: metadata::shown(&configuration.mmds),
        boot_timer: options.boot_timer,
    }
}

/// The configuration that it is of, with this metadata service. A machine that goes on has no kernel; nothing is open yet.
pub(super) fn configuration(note: Note, mmds: Arc<Mutex<Mmds>>) -> Configuration {
    if let Some(config) = note.mmds {
        metadata::restore(&mmds, config);
    }
    let drives = note.drives.into_iter();
    let networks = note.networks.into_iter();
    Configuration {
        machine: MachineConfig {
            smt: false,
            cpu_template: None,
            ..note.machine
        },
        // What its guest was told is in its state.
        features: Vec::new(),
        boot: None,
        drives: drives.map(|config| Drive { config, file: None }).collect(),
        networks: networks
            .map(|config| Network { config, tap: None })
            .collect(),
        vsock: note.vsock.map(|config| Vsock {
            config,
            listener: None,
        }),
        balloon: note.balloon,
        entropy: note.entropy,
        mmds,
        serial: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::mmds::MmdsConfig;

    #[test]
    fn who_reaches_the_metadata_goes_with_a_saved_machine_and_the_data_do_not() {
        let mmds = || Arc::new(Mutex::new(Mmds::new(1000).unwrap()));
        let config: MmdsConfig = serde_json::from_str(
            r#"{"version": "V2", "network_interfaces": ["a"], "ipv4_address": "169.254.170.2"}"#,
        )
        .unwrap();
        let saved = Configuration::new(mmds());
        metadata::restore(&saved.mmds, config.clone());
        saved.mmds.lock().unwrap().put("secret".into()).unwrap();
        let text = of(&saved, &Options::default(), "m").text();
        assert!(!text.contains("secret"), "{text}");
        let here = mmds();
        here.lock().unwrap().put("ours".into()).unwrap();
        let restored = configuration(Note::read(&text).unwrap(), Arc::clone(&here));
        assert_eq!(metadata::shown(&restored.mmds), Some(config));
        assert_eq!(here.lock().unwrap().all(), "\"ours\"");
        // An earlier version had no such key.
        let mut earlier: serde_json::Value = serde_json::from_str(&text).unwrap();
        earlier.as_object_mut().unwrap().remove("mmds");
        let restored = configuration(Note::read(&earlier.to_string()).unwrap(), mmds());
        assert_eq!(metadata::shown(&restored.mmds), None);
    }
}
