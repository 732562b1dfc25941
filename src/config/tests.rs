use super::*;

#[test]
fn memory_sizes_are_mib_unless_they_say_otherwise() {
    for (text, bytes) in [
        ("1024", 1u64 << 30),
        ("2G", 2 << 30),
        ("512M", 512 << 20),
        ("512MiB", 512 << 20),
        ("16384k", 16 << 20),
        ("1t", 1 << 40),
    ] {
        assert_eq!(
            text.parse::<MemorySize>().map(MemorySize::bytes),
            Ok(bytes),
            "{text}"
        );
    }
    for text in ["", "M", "-1", "1.5G", "many", "1é", "é"] {
        assert!(text.parse::<MemorySize>().is_err(), "{text}");
    }
    assert!("99999999T".parse::<MemorySize>().is_err());
}

#[test]
fn what_a_program_or_a_file_gives_is_checked_too() {
    let refused = |config: VmConfig, text: &str| {
        let error = config.machine().unwrap_err().to_string();
        assert!(error.contains(text), "{text}: {error}");
    };
    let config = VmConfig::default;
    let disk = BlkConfig::new("a").with_queues(0);
    if cfg!(feature = "virtio-blk") {
        refused(config().with_disk(disk), "blk[0].queues=0: it is 1 to 16");
        refused(config().with_disk(BlkConfig::default()), "no file");
    }
    if cfg!(feature = "virtio-net") {
        let net = |text: &str| text.parse::<NetConfig>().unwrap();
        for name in ["vm0", "fd=7"] {
            let twice = config().with_net(net(name)).with_net(net(name));
            refused(twice, "another network device has it already");
        }
        let two = config().with_net(net("vm0")).with_net(net("vm1"));
        assert!(two.machine().is_ok());
    }
    if cfg!(feature = "virtio-vsock") {
        let vsock = VsockConfig::new(2, "v");
        refused(config().with_vsock(vsock), "vsock.cid=2: it is");
    }
    if cfg!(feature = "virtio-balloon") {
        let balloon = BalloonConfig::default().with_target(0);
        refused(config().with_balloon(balloon), "left with no memory");
    }
}

#[test]
fn a_configuration_survives_a_file() {
    let config = VmConfig::default()
        .with_kernel("/k")
        .with_memory_mib(99)
        .with_vcpus(3);
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<VmConfig>(&text).unwrap(), config);
    assert_eq!(
        serde_json::from_str::<VmConfig>(r#"{"guest-memory": 64}"#)
            .unwrap()
            .guest_memory,
        MemorySize::mib(64)
    );
    assert!(serde_json::from_str::<VmConfig>(r#"{"memory": 64}"#).is_err());
}
