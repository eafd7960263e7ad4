use std::collections::BTreeMap;
use std::io::{IoSliceMut, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::*;

fn settings(list: &[(&str, &str)]) -> Settings {
    let map: BTreeMap<_, _> = list.iter().copied().collect();
    Settings::read(|name| map.get(name).map(|v| (*v).to_owned()), 42)
}

#[test]
fn descriptors_meant_for_another_process_are_left_alone() {
    let ours = [
        ("LISTEN_PID", "42"),
        ("LISTEN_FDS", "3"),
        ("LISTEN_FDNAMES", "nft:tun"),
    ];
    assert_eq!(settings(&ours).names, ["nft", "tun", "unknown"]);
    let other = [("LISTEN_PID", "41"), ("LISTEN_FDS", "3")];
    assert!(settings(&other).names.is_empty());
    let absurd = [("LISTEN_PID", "42"), ("LISTEN_FDS", "18446744073709551615")];
    assert_eq!(settings(&absurd).names.len(), LISTEN_FDS_MAX);
    assert_eq!(settings(&[("LISTEN_FDS", "x")]), Settings::default());
}

#[test]
fn the_watchdog_is_for_the_named_process_only() {
    let usec = ("WATCHDOG_USEC", "3000000");
    let three = Some(Duration::from_secs(3));
    assert_eq!(settings(&[usec]).watchdog, three);
    assert_eq!(settings(&[usec, ("WATCHDOG_PID", "42")]).watchdog, three);
    assert_eq!(settings(&[usec, ("WATCHDOG_PID", "7")]).watchdog, None);
    assert_eq!(settings(&[("WATCHDOG_USEC", "0")]).watchdog, None);
}

#[test]
fn without_a_manager_every_notice_succeeds() {
    let nobody = Notifier::default();
    nobody.ready().unwrap();
    nobody.store("nft", io::stdin()).unwrap();
    assert!(!nobody.is_present());
}

#[test]
fn notices_and_stored_descriptors_reach_the_manager() {
    let path = std::env::temp_dir().join(format!("hgt-notify-{}", std::process::id()));
    drop(std::fs::remove_file(&path));
    let listener = UnixDatagram::bind(&path).unwrap();
    let manager = Notifier {
        notify: Notify::open(path.to_str().unwrap()),
        ..Notifier::default()
    };
    manager.ready().unwrap();
    manager.status("two\nlines").unwrap();
    let mut buffer = [0; 256];
    let n = listener.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"READY=1");
    let n = listener.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"STATUS=two lines");

    let (mut near, far) = UnixStream::pair().unwrap();
    manager.store("nft", &far).unwrap();
    drop(far);
    let (text, descriptor) = receive_with_descriptor(&listener);
    assert_eq!(text, "FDSTORE=1\nFDPOLL=0\nFDNAME=nft");
    near.write_all(b"same pipe").unwrap();
    let mut got = [0; 9];
    UnixStream::from(descriptor).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"same pipe");
    std::fs::remove_file(&path).unwrap();
}

fn receive_with_descriptor(listener: &UnixDatagram) -> (String, OwnedFd) {
    let mut buffer = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let got = recvmsg(listener, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let descriptor = control
        .drain()
        .find_map(|m| {
            let RecvAncillaryMessage::ScmRights(mut list) = m else {
                return None;
            };
            list.next()
        })
        .unwrap();
    let text = String::from_utf8(buffer[..got.bytes].to_vec()).unwrap();
    (text, descriptor)
}
