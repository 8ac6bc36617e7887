use proptest::prelude::*;

use super::*;

/// The example of wireguard.com/xplatform, with keys of our own.
const EXAMPLE: &str = "set=1\n\
    private_key=e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a\n\
    fwmark=0\nlisten_port=12912\nreplace_peers=true\n\
    public_key=b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33\n\
    preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52\n\
    replace_allowed_ips=true\nallowed_ip=192.168.4.4/32\nallowed_ip=-10.0.0.0/8\n\
    endpoint=[2001:db8::1]:51820\n\
    public_key=58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376\n\
    update_only=true\npersistent_keepalive_interval=111\nendpoint=182.122.22.19:3233\n\
    public_key=662e14fd594556f522604703340351258903b64f35553763f19426ab2a515c58\n\
    remove=true\n\n";

#[test]
fn the_example_of_the_specification_is_understood() {
    let Ok(Request::Set(changes)) = parse_request(EXAMPLE.as_bytes()) else { panic!("a set") };
    assert!(changes.private_key.is_some() && changes.replace_peers);
    assert_eq!(changes.listen_port, Some(12912));
    let [first, second, third] = &changes.peers[..] else { panic!("three peers") };
    assert!(first.replace_allowed_ips && matches!(first.preshared_key, Some(Some(_))));
    assert_eq!(first.endpoint, Some("[2001:db8::1]:51820".parse().unwrap()));
    let networks =
        [("192.168.4.4/32".parse().unwrap(), true), ("10.0.0.0/8".parse().unwrap(), false)];
    assert_eq!(first.allowed_ips, networks);
    assert!(second.update_only);
    assert_eq!(second.persistent_keepalive, Some(Some(Duration::from_secs(111))));
    assert!(third.remove);
    assert_eq!(parse_request(GET.as_bytes()), Ok(Request::Get));
}

#[test]
fn a_request_with_a_mistake_is_refused_as_a_whole() {
    let key = "00".repeat(32);
    let peer = format!("set=1\npublic_key={key}\n");
    for (request, errno) in [
        (String::new(), 22),
        ("\n".to_owned(), 22),
        ("get=2\n\n".to_owned(), 22),
        ("get=1\nset=1\n\n".to_owned(), 22),
        ("set=1\nlisten_port=65536\n\n".to_owned(), 22),
        ("set=1\nlisten_port=+1\n\n".to_owned(), 22),
        ("set=1\nlisten_port\n\n".to_owned(), 22),
        ("set=1\nprivate_key=00\n\n".to_owned(), 22),
        (format!("set=1\nprivate_key={}\n\n", "é".repeat(32)), 22),
        ("set=1\nreplace_peers=false\n\n".to_owned(), 22),
        ("set=1\nendpoint=1.2.3.4:5\n\n".to_owned(), 22),
        (format!("{peer}protocol_version=2\n\n"), 71),
        (format!("{peer}endpoint=host:5\n\n"), 22),
        (format!("{peer}allowed_ip=10.0.0.0/33\n\n"), 22),
        (format!("{peer}listen_port=1\n\n"), 22),
        (format!("{peer}persistent_keepalive_interval=65536\n\n"), 22),
    ] {
        let error = parse_request(request.as_bytes()).expect_err(&request);
        assert_eq!(error.errno(), Errno(errno), "{request}");
    }
    assert_eq!(parse_request(b"set=1\nlisten_port=\xff\n\n"), Err(UapiError::Malformed));
}

#[test]
fn a_message_ends_with_an_empty_line() {
    assert_eq!(message_end(b"get=1\n"), None);
    assert_eq!(message_end(b"get=1\n\nset=1\n\n"), Some(7));
    assert_eq!(message_end(b"\nget=1\n\n"), Some(1), "an empty request is one too");
}

#[test]
fn an_answer_with_an_errno_is_an_error_in_words() {
    let error = parse_get_answer(answer_errno(Errno::EADDRINUSE).as_bytes()).unwrap_err();
    assert!(error.to_string().contains("Address already in use"), "{error}");
    assert_eq!(parse_set_answer(b"errno=-22\n\n"), Err(UapiError::Refused(Errno::EINVAL)));
    assert_eq!(parse_set_answer(b"errno=0\n\n"), Ok(()));
    assert_eq!(parse_set_answer(b"\n\n"), Err(UapiError::Malformed));
}

fn any_network() -> impl Strategy<Value = IpNet> {
    (any::<std::net::IpAddr>(), any::<u8>()).prop_map(|(ip, len)| {
        let bits = if ip.is_ipv4() { 33 } else { 129 };
        IpNet::new(ip, len % bits).unwrap().trunc()
    })
}

/// Not of zeros.
fn any_key() -> impl Strategy<Value = [u8; KEY_BYTES]> {
    (any::<[u8; KEY_BYTES]>(), 1u8..).prop_map(|(mut key, first)| {
        key[0] = first;
        key
    })
}

fn any_socket_address() -> impl Strategy<Value = SocketAddr> {
    any::<(std::net::IpAddr, u16)>().prop_map(SocketAddr::from)
}

fn any_interval() -> impl Strategy<Value = Option<Duration>> {
    proptest::option::of((1u16..).prop_map(|s| Duration::from_secs(s.into())))
}

prop_compose! {
    fn any_change()(
        key in any::<[u8; KEY_BYTES]>(),
        (remove, update_only, replace_allowed_ips) in any::<(bool, bool, bool)>(),
        preshared_key in proptest::option::of(proptest::option::of(any_key())),
        endpoint in proptest::option::of(any_socket_address()),
        persistent_keepalive in proptest::option::of(any_interval()),
        allowed_ips in proptest::collection::vec((any_network(), any::<bool>()), 0..4),
    ) -> PeerChange {
        let preshared_key = preshared_key.map(|key| key.map(PresharedKey::from_bytes));
        PeerChange {
            public_key: PublicKey(key), remove, update_only, preshared_key, endpoint,
            persistent_keepalive, replace_allowed_ips, allowed_ips,
        }
    }
}

prop_compose! {
    fn any_device_peer()(
        key in any::<[u8; KEY_BYTES]>(),
        preshared_key in proptest::option::of(any_key()),
        endpoint in proptest::option::of(any_socket_address()),
        last_handshake in proptest::option::of((1u64.., 0u32..1_000_000_000)),
        (rx_bytes, tx_bytes) in any::<(u64, u64)>(),
        persistent_keepalive in any_interval(),
        allowed_ips in proptest::collection::vec(any_network(), 0..4),
    ) -> DevicePeer {
        let preshared_key = preshared_key.map(PresharedKey::from_bytes);
        let last_handshake = last_handshake.map(|(secs, nanos)| Duration::new(secs, nanos));
        DevicePeer {
            public_key: PublicKey(key), preshared_key, endpoint, last_handshake, rx_bytes, tx_bytes,
            persistent_keepalive, allowed_ips,
        }
    }
}

proptest! {
    #[test]
    fn a_set_is_read_as_it_was_written(
        private_key in proptest::option::of(proptest::option::of(any_key())),
        listen_port in any::<Option<u16>>(),
        replace_peers in any::<bool>(),
        peers in proptest::collection::vec(any_change(), 0..4),
    ) {
        let private_key = private_key.map(|key| key.map(PrivateKey::from_bytes));
        let changes = Changes { private_key, listen_port, replace_peers, peers };
        let text = format_set(&changes);
        prop_assert_eq!(message_end(text.as_bytes()), Some(text.len()));
        prop_assert_eq!(parse_request(text.as_bytes()), Ok(Request::Set(changes)));
    }

    #[test]
    fn a_device_is_read_as_it_was_told(
        private_key in proptest::option::of(any_key()),
        listen_port in any::<u16>(),
        peers in proptest::collection::vec(any_device_peer(), 0..4),
    ) {
        let private_key = private_key.map(PrivateKey::from_bytes);
        let device = Device { private_key, listen_port, peers };
        prop_assert_eq!(parse_get_answer(answer_get(&device).as_bytes()), Ok(device));
    }

    #[test]
    fn no_bytes_are_a_panic(bytes in any::<Vec<u8>>(), text in "(set=1|get=1|[a-z_]{1,20}=|[0-9a-f:./-]{1,9}|true|\n){0,30}") {
        for bytes in [&bytes[..], text.as_bytes()] {
            let _ = (parse_request(bytes), parse_get_answer(bytes), message_end(bytes));
        }
    }
}
