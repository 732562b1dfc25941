#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn a_disk_is_described_in_full() {
    let disk: BlkConfig = "path=a.img,ro,serial=x=y,engine=sync,direct,queues=4,queue-size=64,\
        discard=off,bw=10M,iops=500,iops-burst=1K"
        .parse()
        .unwrap();
    assert_eq!(
        disk,
        BlkConfig {
            path: "a.img".into(),
            read_only: true,
            serial: "x=y".into(),
            engine: BlkEngine::Sync,
            direct: true,
            queues: 4,
            queue_size: 64,
            discard: false,
            limits: Limits {
                bw: Some(10 << 20),
                bw_burst: None,
                iops: Some(500),
                iops_burst: Some(1024),
            },
        }
    );
    assert_eq!("b".parse::<BlkConfig>().unwrap().path, PathBuf::from("b"));
}

#[test]
fn a_comma_too_many_is_no_option() {
    for (text, read_only) in [
        ("a.img,", false),
        ("a.img,,ro", true),
        (",path=a.img", false),
    ] {
        let disk: BlkConfig = text.parse().unwrap();
        assert_eq!((disk.path, disk.read_only), ("a.img".into(), read_only));
    }
    assert_eq!(
        "vm0,".parse::<NetConfig>().unwrap().tap.as_deref(),
        Some("vm0")
    );
}

#[test]
fn what_a_program_gives_has_the_same_limits() {
    let disk = |change: fn(&mut BlkConfig)| {
        let mut disk: BlkConfig = "a".parse().unwrap();
        change(&mut disk);
        disk.check().unwrap_err().to_string()
    };
    assert!(disk(|disk| disk.path = PathBuf::new()).contains("PATH"));
    assert!(disk(|disk| disk.queues = 17).contains("1 to 16"));
    assert!(disk(|disk| disk.queue_size = 3).contains("power of two"));
    assert!(disk(|disk| disk.limits.bw_burst = Some(0)).contains("bw-burst"));
    assert!(disk(|disk| disk.serial = "x".repeat(21)).contains("20 bytes"));
    let net = |change: fn(&mut NetConfig)| {
        let mut net: NetConfig = "vm0".parse().unwrap();
        change(&mut net);
        net.check().unwrap_err().to_string()
    };
    assert!(net(|net| (net.tap, net.fd) = (None, Some(-1))).contains("fd=\"-1\""));
    assert!(net(|net| net.tap = Some(String::new())).contains("1 to 15 bytes"));
    assert!(net(|net| net.mac = Some(Mac([1, 0, 0, 0, 0, 0]))).contains("even"));
    assert!(net(|net| net.mtu = Some(67)).contains("68 to"));
    assert!(net(|net| net.limits.iops = Some(u64::MAX)).contains("1024T"));
}

#[test]
fn a_network_device_is_a_tap_or_a_descriptor() {
    let net: NetConfig = "tap=vm0,mac=02:00:00:00:00:0a,mtu=9000,queues=2,queue-size=512,bw=1M"
        .parse()
        .unwrap();
    assert_eq!(net.tap.as_deref(), Some("vm0"));
    assert_eq!(net.mac.unwrap().to_string(), "02:00:00:00:00:0a");
    assert_eq!((net.mtu, net.queues, net.queue_size), (Some(9000), 2, 512));
    assert_eq!(net.limits.bw, Some(1 << 20));
    assert_eq!("fd=7".parse::<NetConfig>().unwrap().fd, Some(7));
    for (text, named) in [
        ("", "NAME"),
        ("a-name-that-is-too-long", "15 bytes"),
        ("a b", "no blank"),
        ("vm%d", "no /, : or %"),
        ("vm:0", "no /, : or %"),
        (".", "not . or .."),
        ("tap=..", "not . or .."),
        ("fd=-1", "0 to"),
        ("vm0,bw-burst=0", "bw-burst"),
        ("vm0,fd=3", "one of the two"),
        ("fd=3,queues=2", "one pair"),
        ("vm0,mac=1:2:3:4:5:6", "six hexadecimal"),
        ("vm0,mac=01:00:00:00:00:00", "even"),
        ("vm0,mtu=20", "68 to"),
        ("vm0,ro", "unknown option \"ro\""),
    ] {
        let error = text.parse::<NetConfig>().unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
    }
}

#[test]
fn sockets_have_a_number_and_a_path() {
    let vsock: VsockConfig = "cid=3,path=/tmp/v".parse().unwrap();
    assert_eq!((vsock.cid, vsock.path), (3, PathBuf::from("/tmp/v")));
    for (text, named) in [
        ("", "no cid"),
        ("cid=2,path=x", "3 to 4294967294"),
        ("cid=4294967295,path=x", "3 to"),
        ("cid=7", "no path"),
        ("cid=7,path=", "no path"),
        ("x,cid=7", "unknown option \"x\""),
    ] {
        let error = text.parse::<VsockConfig>().unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
    }
}

#[test]
fn a_balloon_may_say_nothing() {
    let parse = |text: &str| text.parse::<BalloonConfig>();
    assert_eq!(parse("").unwrap(), BalloonConfig::default());
    let balloon = parse("deflate-on-oom,target=64,free-page-reporting").unwrap();
    assert_eq!(balloon.target, Some(64 << 20));
    assert!(balloon.deflate_on_oom && balloon.free_page_reporting);
    assert!(parse("size=1").is_err());
    assert_eq!(parse("target=5000B").unwrap().target, Some(5000));
    let nothing = parse("target=0").unwrap_err().to_string();
    assert!(nothing.contains("left with no memory"), "{nothing}");
}

#[test]
fn a_wrong_option_is_named_with_what_would_be_right() {
    for (text, named) in [
        ("", "PATH"),
        ("ro", ""),
        ("path=", "PATH"),
        ("a,wo", "wo"),
        ("a,queues=0", "1 to 16"),
        ("a,queues=x", "queues=\"x\""),
        ("a,queue-size=100", "power of two"),
        ("a,queue-size=2048", "2 to 1024"),
        ("a,engine=fast", "io_uring"),
        ("a,discard=maybe", "on or off"),
        ("a,serial=123456789012345678901", "20 bytes"),
        ("a,bw=0", "1 to"),
        ("a,iops=many", "not a number"),
    ] {
        match text.parse::<BlkConfig>() {
            Ok(_) => assert_eq!(text, "ro", "a file may have that name"),
            Err(error) => assert!(error.to_string().contains(named), "{text}: {error}"),
        }
    }
}
