#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn a_disk_is_described_in_full() {
    let disk: BlkConfig = "path=a.img,ro,serial=x=y,engine=sync,direct,queues=4,queue-size=64,\
        discard=off,lock=off,bw=10M,iops=500,iops-burst=1K"
        .parse()
        .unwrap();
    assert_eq!(
        disk,
        BlkConfig {
            id: None,
            path: "a.img".into(),
            read_only: true,
            serial: "x=y".into(),
            engine: BlkEngine::Sync,
            direct: true,
            queues: 4,
            queue_size: 64,
            discard: false,
            lock: false,
            limits: Limits {
                bw: Some(10 << 20),
                bw_burst: None,
                iops: Some(500),
                iops_burst: Some(1024),
                ..Limits::default()
            },
        }
    );
    assert_eq!("b".parse::<BlkConfig>().unwrap().path, PathBuf::from("b"));
}

#[test]
fn limits_of_a_network_device_are_for_both_directions_or_one() {
    let net: NetConfig = "vm0,bw=1M,rx-bw=2M,rx-bw-refill=100,tx-iops=5,tx-iops-once=7"
        .parse()
        .unwrap();
    assert_eq!(net.limits, Limits::default().with_bw(1 << 20));
    let rx = Limits::default().with_bw(2 << 20).with_bw_refill(100);
    let tx = Limits::default().with_iops(5).with_iops_once(7);
    assert_eq!((net.rx_limits, net.tx_limits), (Some(rx), Some(tx)));
    let json = serde_json::to_string(&net).unwrap();
    assert_eq!(serde_json::from_str::<NetConfig>(&json).unwrap(), net);
    for (wrong, path) in [
        ("vm0,rx-bw=0", "rx-limits.bw"),
        ("vm0,tx-bw-once=1", "tx-limits.bw-once"),
        ("vm0,iops-refill=1", "limits.iops-refill"),
    ] {
        let error = wrong.parse::<NetConfig>().unwrap_err();
        assert_eq!(error.path(), Some(path), "{error}");
    }
}

#[test]
fn a_change_of_limits_names_what_it_changes() {
    let change = |text| LimitsChange::parse(Some(Direction::Rx), text);
    let all = "bw=10 bw-burst=20 bw-refill=100 bw-once=5 iops=0";
    let parsed = change(all).unwrap();
    assert_eq!(parsed.to_string(), format!("--direction=rx {all}"));
    let text = r#"{"direction":"rx","bw":{"amount":10,"burst":20,"refill":100,"once":5},"iops":{"amount":0}}"#;
    assert_eq!(serde_json::to_string(&parsed).unwrap(), text);
    assert_eq!(serde_json::from_str::<LimitsChange>(text).unwrap(), parsed);
    for wrong in [
        "",
        "none",
        "bw-burst=1",
        "bw=0 bw=1",
        "iops=fast",
        "bw-refill=0,bw=1",
    ] {
        assert!(change(wrong).is_err(), "{wrong}");
    }
    for wrong in [
        r#"{"bw":{}}"#,
        r#"{"bw":{"amount":1,"refill":0}}"#,
        r#"{"speed":1}"#,
        r#"{"direction":"up","bw":{"amount":1}}"#,
    ] {
        assert!(
            serde_json::from_str::<LimitsChange>(wrong).is_err(),
            "{wrong}"
        );
    }
    assert!(
        serde_json::from_str::<LimitsChange>("{}")
            .unwrap()
            .check()
            .is_err()
    );
}

#[test]
fn nothing_is_no_option_and_no_value() {
    let said = |device: &str, text: &str| {
        let error = match device {
            "blk" => text.parse::<BlkConfig>().map(drop),
            "net" => text.parse::<NetConfig>().map(drop),
            "vsock" => text.parse::<VsockConfig>().map(drop),
            _ => text.parse::<BalloonConfig>().map(drop),
        };
        error.map_err(|error| error.to_string()).unwrap_err()
    };
    let devices: [(&str, &str, &[&str]); 4] = [
        ("blk", "a.img", BlkConfig::OPTIONS),
        ("net", "vm0", NetConfig::OPTIONS),
        ("vsock", "cid=3,path=v", VsockConfig::OPTIONS),
        ("balloon", "deflate-on-oom", BalloonConfig::OPTIONS),
    ];
    for (device, right, options) in devices {
        for wrong in [
            format!("{right},"),
            format!(",{right}"),
            format!("{right},,id=a"),
            ",".to_owned(),
        ] {
            let said = said(device, &wrong);
            assert!(said.contains("between two commas"), "{wrong}: {said}");
        }
        for option in options {
            let key = option.trim_end_matches('=');
            for empty in ["", "\"\""] {
                let said = said(device, &format!("{key}={empty}"));
                assert!(
                    said.starts_with(&format!("{key}=\"\": it is empty; ")),
                    "{said}"
                );
                assert_eq!(said.contains("alone means on"), key == *option, "{said}");
            }
        }
    }
    assert_eq!("".parse(), Ok(BalloonConfig::default()));
    for wrong in ["bw=1,,iops=2", "bw=", "bw=1,"] {
        assert!(wrong.parse::<Limits>().is_err(), "{wrong}");
    }
    assert_eq!("bw=1, iops=2".parse(), "bw=1,iops=2".parse::<Limits>());
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
    assert!(disk(|disk| disk.limits.iops_burst = Some(1)).contains("give iops as well"));
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
        ("cid=7,path=", "it is empty"),
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
    assert!(balloon.deflate_on_oom && balloon.free_page_reporting && !balloon.free_page_hinting);
    let balloon = parse("free-page-hinting,stats-interval=5,deflate-on-oom=off").unwrap();
    assert!(balloon.free_page_hinting && !balloon.free_page_reporting && !balloon.deflate_on_oom);
    assert_eq!(balloon.stats_interval, 5);
    for interval in ["stats-interval=-1", "stats-interval=86401"] {
        let error = parse(interval).unwrap_err().to_string();
        assert!(error.contains("0 to 86400"), "{error}");
    }
    let balloon = BalloonConfig {
        stats_interval: 86_401,
        ..BalloonConfig::default()
    };
    assert!(balloon.check().is_err());
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
        ("path=", "it is empty"),
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

#[test]
fn r66_a_path_may_hold_anything() {
    for (text, path, read_only) in [
        ("a=b.img", "a=b.img", false),
        ("a=b.img,ro", "a=b.img", true),
        ("path=a=b,ro", "a=b", true),
        ("\"a,b.img\",ro", "a,b.img", true),
        ("ro,path=\"a,b=c.img\"", "ro", false),
        ("ro=on,path=\"a,b=c.img\"", "a,b=c.img", true),
        ("path=\"say \"\"hi\"\", then\"", "say \"hi\", then", false),
        ("path=\"queues=4,ro\",queues=2", "queues=4,ro", false),
        ("a b;c", "a b;c", false),
    ] {
        let found = text.parse::<BlkConfig>();
        if text.starts_with("ro,") {
            // A bare word is the path, so there are two.
            assert_eq!(found, Err(OptionError::Twice("path")));
            continue;
        }
        let disk = found.unwrap();
        assert_eq!((disk.path, disk.read_only), (path.into(), read_only));
    }
    let vsock: VsockConfig = "path=\"/run/a,b=c\",cid=3".parse().unwrap();
    assert_eq!(vsock.path, PathBuf::from("/run/a,b=c"));
    let net: NetConfig = "tap=a=b".parse().unwrap();
    assert_eq!(net.tap.as_deref(), Some("a=b"));
    for (text, named) in [
        ("a,b.img", "a path with a comma stands in double quotes"),
        ("path=\"a", "closing double quote is missing"),
        ("path=\"a\"b", "a comma comes"),
        ("pth=a,path=b", "unknown option \"pth\""),
    ] {
        let error = text.parse::<BlkConfig>().unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
    }
    // A tap device of that name would be made.
    let error = "tpa=vm0".parse::<NetConfig>().unwrap_err().to_string();
    assert!(error.contains("unknown option \"tpa\""), "{error}");
}

#[test]
fn an_option_is_given_once_and_a_burst_with_its_rate() {
    for text in [
        "path=a,path=b",
        "a,path=b",
        "a,ro,ro",
        "a,ro,ro=off",
        "a,queues=1,queues=2",
        "a,bw=1,bw=1",
        "a,direct,direct=off",
    ] {
        let error = text.parse::<BlkConfig>().unwrap_err();
        assert!(error.to_string().contains("is given twice"), "{text}");
    }
    assert!("vm0,tap=vm1".parse::<NetConfig>().is_err());
    assert!("cid=3,cid=4,path=a".parse::<VsockConfig>().is_err());
    let flags = "deflate-on-oom,deflate-on-oom";
    assert!(flags.parse::<BalloonConfig>().is_err());
    for (text, named) in [
        ("a,bw-burst=1M", "give bw as well"),
        ("a,iops-burst=1,bw=2", "give iops as well"),
    ] {
        let error = text.parse::<BlkConfig>().unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
        let error = text.parse::<NetConfig>().unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
    }
}

#[test]
fn a_number_that_fits_no_type_has_its_range_in_the_message() {
    for wrong in [
        "-1",
        "99999",
        "99999999999999999999999999999999999999999999",
        "x",
        "1.5",
    ] {
        for (key, range) in [
            ("queues", "1 to 16"),
            ("queue-size", "a power of two, 2 to 1024"),
        ] {
            let text = format!("a,{key}={wrong}");
            let error = text.parse::<BlkConfig>().unwrap_err().to_string();
            assert!(error.contains(range), "{text}: {error}");
        }
        for (key, range) in [
            ("queues", "1 to 8"),
            ("queue-size", "a power of two, 2 to 1024"),
            ("mtu", "68 to 65535"),
        ] {
            let text = format!("vm0,{key}={wrong}");
            let error = text.parse::<NetConfig>().unwrap_err().to_string();
            assert!(error.contains(range), "{text}: {error}");
        }
        let text = format!("cid={wrong},path=a");
        if let Err(error) = text.parse::<VsockConfig>() {
            assert!(error.to_string().contains("3 to 4294967294"), "{error}");
        } else {
            assert_eq!(wrong, "99999");
        }
    }
    for (text, named) in [
        ("a,bw=-1", "1 to 1024T"),
        ("a,bw=99999999T", "1 to 1024T"),
        ("a,iops=99999999999999999999999", "1 to 1024T"),
        ("a,iops=0", "1 to 1024T"),
        ("a,ro=yes", "it is on or off"),
        ("a,ro=true", "it is on or off"),
        ("a,direct=1", "it is on or off"),
    ] {
        let error = text.parse::<BlkConfig>().unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
    }
    for (text, read_only) in [("a,ro=on", true), ("a,ro=off", false)] {
        assert_eq!(text.parse::<BlkConfig>().unwrap().read_only, read_only);
    }
}

#[test]
fn sizes_have_one_form_each() {
    for (text, bytes) in [
        ("5", 5 << 20),
        ("5B", 5),
        ("5K", 5 << 10),
        ("5KB", 5 << 10),
        ("5kib", 5 << 10),
        ("5MiB", 5 << 20),
        ("16777215T", 16_777_215 << 40),
    ] {
        assert_eq!(parse_size(text, 20, ""), Ok(bytes), "{text}");
    }
    for text in [
        "5IB", "5BB", "5MM", "5 bytes", "5iBiB", "B", "K", "0x10", "1_0",
    ] {
        assert!(parse_size(text, 20, "").is_err(), "{text}");
    }
    for text in ["-1", "16777216T", "99999999999999999999"] {
        assert_eq!(
            parse_size(text, 0, "1 to 9"),
            Err("it is 1 to 9".to_owned())
        );
    }
    for size in [1, 5000, 4096, 1 << 20, 3 << 30, u64::MAX] {
        assert_eq!(parse_size(&size_with_unit(size), 20, ""), Ok(size));
    }
}
