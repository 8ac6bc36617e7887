use super::super::TunnelFile;
use super::*;
use crate::options::Options;

const KEYS: &str = "[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n";
const PEER: &str = "[Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n";

fn tunnel(name: &str, interface: &str, allowed: &str) -> TunnelFile {
    let text = format!("{KEYS}{interface}\n{PEER}AllowedIPs = {allowed}\n");
    let config = usernet_wireguard::conf::parse(name, &text).unwrap().config;
    TunnelFile { tunnel: Tunnel { name: name.to_owned(), config }, warnings: Vec::new() }
}

fn plan_with(wanted: Wanted) -> Result<Plan, String> {
    let mut plan = Options::checked(["usernetd", "--netns=1"]).unwrap().plan();
    wanted.apply(&mut plan).map(|()| plan)
}

fn networks(list: &[&str]) -> Vec<Prefix> {
    let one = |text: &&str| {
        let net: IpNet = text.parse().unwrap();
        Prefix { address: net.addr(), len: net.prefix_len() }
    };
    list.iter().map(one).collect()
}

#[test]
fn a_tunnel_is_the_way_out_if_it_covers_a_family_and_is_routed() {
    for (interface, allowed, is_way_out) in [
        ("", "0.0.0.0/0", true),
        ("", "::/0", true),
        ("", "10.0.0.0/8, 0.0.0.0/0, ::/0", true),
        ("", "0.0.0.0/1, 128.0.0.0/1", true),
        ("", "::/1, 8000::/1", true),
        ("Table = main", "0.0.0.0/0", true),
        ("Table = off", "0.0.0.0/0", false),
        ("Table = 51820", "0.0.0.0/0", false),
        ("", "0.0.0.0/1", false),
        ("", "0.0.0.0/1, 8000::/1", false),
        ("", "10.0.0.0/8, fd00::/8", false),
        ("", "", false),
    ] {
        let file = tunnel("wg0", interface, allowed);
        assert_eq!(file.tunnel.is_way_out(), is_way_out, "{interface} {allowed}");
    }
}

#[test]
fn a_way_out_takes_the_links_default_routes_and_the_hosts_resolvers() {
    let wanted = Wanted {
        files: vec![tunnel("wg0", "DNS = 10.64.0.1, fd00:64::1", "0.0.0.0/0")],
        split: networks(&["192.168.0.0/16", "fd12::/16"]),
        ..Wanted::default()
    };
    let plan = plan_with(wanted.clone()).unwrap();
    assert!(!plan.net4.unwrap().is_default_route && !plan.net6.unwrap().is_default_route);
    assert_eq!(plan.access.plain_path, PlainPath::Only(wanted.split));
    let asked = ["10.64.0.1:53", "[fd00:64::1]:53"].map(|text| text.parse().unwrap());
    assert_eq!(plan.resolvers, Resolvers::These(asked.to_vec()));
    assert_eq!(plan.access.dns, DnsService::ForwardedInside);
    assert_eq!(plan.announced.dns.len(), 2, "those of the tunnel");
    let Link::Namespace(namespace) = plan.link else { panic!("a namespace") };
    let routes: Vec<_> =
        namespace.routes.iter().map(|route| (route.to, route.gateway.unwrap())).collect();
    let at = |text: &str| -> IpAddr { text.parse().unwrap() };
    assert_eq!(
        routes,
        [((at("192.168.0.0"), 16), at("10.0.2.2")), ((at("fd12::"), 16), at("fd00::2"))]
    );
    assert_eq!(plan.warnings, Vec::<String>::new());
}

#[test]
fn a_tunnel_to_some_networks_leaves_the_rest_as_it_is() {
    let file = tunnel("wg0", "", "10.8.0.0/16");
    let plan = plan_with(Wanted { files: vec![file], ..Wanted::default() }).unwrap();
    assert!(plan.net4.unwrap().is_default_route);
    assert_eq!(plan.access.plain_path, PlainPath::Everything);
    assert_eq!(plan.resolvers, Resolvers::OfHost);
    let file = tunnel("wg0", "DNS = 10.8.0.1", "10.8.0.0/16");
    let plan = plan_with(Wanted { files: vec![file], ..Wanted::default() }).unwrap();
    let asked = vec!["10.8.0.1:53".parse().unwrap()];
    assert_eq!(plan.resolvers, Resolvers::These(asked), "it has some of its own");
}

#[test]
fn an_isolated_guest_has_no_plain_path_and_a_way_out_without_dns_is_told() {
    let plan = plan_with(Wanted { is_isolated: true, ..Wanted::default() }).unwrap();
    assert_eq!(plan.access.plain_path, PlainPath::Only(Vec::new()));
    assert_eq!(plan.resolvers, Resolvers::These(Vec::new()));
    assert!(plan.announced.dns.is_empty() && plan.warnings.is_empty());
    let file = tunnel("wg0", "", "0.0.0.0/0");
    let plan = plan_with(Wanted { files: vec![file], ..Wanted::default() }).unwrap();
    assert!(plan.warnings[0].contains("write DNS ="), "{:?}", plan.warnings);
}

#[test]
fn two_devices_have_two_names() {
    for names in [["wg0", "wg0"], ["wg0", "tap0"]] {
        let files = names.map(|name| tunnel(name, "", "10.0.0.0/8")).to_vec();
        let error = plan_with(Wanted { files, ..Wanted::default() }).unwrap_err();
        assert!(error.contains("two devices would be called"), "{error}");
    }
}
