//! How a machine's network is to be set up, as its source says it.

use std::net::{IpAddr, Ipv4Addr};

use serde::Deserialize;

/// A fixed address with what belongs to it, for the first network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The address.
    pub address: Ipv4Addr,
    /// Which addresses are its neighbours'.
    pub netmask: Ipv4Addr,
    /// Through whom others are reached.
    pub gateway: Option<Ipv4Addr>,
    /// Who knows names.
    pub name_servers: Vec<IpAddr>,
}

/// What is needed of OpenStack's `network_data.json`.
#[derive(Deserialize)]
struct NetworkData {
    #[serde(default)]
    networks: Vec<NetworkOf>,
    #[serde(default)]
    services: Vec<Service>,
}

#[derive(Deserialize)]
struct NetworkOf {
    #[serde(rename = "type")]
    kind: String,
    ip_address: Option<String>,
    netmask: Option<Ipv4Addr>,
    gateway: Option<Ipv4Addr>,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Deserialize)]
struct Route {
    network: String,
    gateway: Ipv4Addr,
}

#[derive(Deserialize)]
struct Service {
    #[serde(rename = "type")]
    kind: String,
    address: IpAddr,
}

impl Plan {
    /// Out of OpenStack's JSON; none where the first network is by DHCP.
    pub fn of_network_data(text: &str) -> serde_json::Result<Option<Self>> {
        let data: NetworkData = serde_json::from_str(text)?;
        let Some(network) = data.networks.iter().find(|network| network.kind.starts_with("ipv4")) else {
            return Ok(None);
        };
        let Some((address, netmask)) = network.ip_address.as_deref().and_then(with_prefix) else {
            return Ok(None);
        };
        let Some(netmask) = network.netmask.or(netmask) else { return Ok(None) };
        let default =
            network.routes.iter().find(|route| route.network == "0.0.0.0").map(|route| route.gateway);
        let servers =
            data.services.iter().filter(|service| service.kind == "dns").map(|service| service.address);
        let gateway = network.gateway.or(default);
        Ok(Some(Self { address, netmask, gateway, name_servers: servers.collect() }))
    }

    /// Out of cloud-init's `network-config`, version 1 or 2, as Proxmox VE and people write it; none where it is by DHCP. YAML
    /// is read as far as such files go: keys, lists with a dash or in brackets, no anchors, no texts over several lines.
    pub fn of_network_config(text: &str) -> Option<Self> {
        let mut found = (None, None, None, Vec::new());
        // The keys around a line, with their indentation.
        let mut around: Vec<(usize, String)> = Vec::new();
        for line in text.lines() {
            let line = line.split(" #").next().unwrap_or_default();
            let bare = line.trim_start();
            if bare.is_empty() || bare.starts_with('#') {
                continue;
            }
            let dash = bare.starts_with("- ").then(|| line.len() - bare.len());
            let item = bare.trim_start_matches("- ").trim_start();
            let indent = line.len() - item.len();
            // A list may stand as far out as its key.
            around.retain(|(at, _)| dash.map_or(*at < indent, |dash| *at <= dash));
            let value = match item.split_once(':') {
                Some((key, value)) if value.is_empty() || value.starts_with(' ') => {
                    around.push((indent, unquoted(key.trim()).to_owned()));
                    value.trim()
                }
                _ => item.trim(),
            };
            let key = around.last().map_or(String::new(), |(_, key)| key.clone());
            if key == "type" && unquoted(value) == "nameserver" {
                // Of version 1, where a name server is an entry of its own: around what follows in it.
                around.push((indent.saturating_sub(1), "nameservers".to_owned()));
                continue;
            }
            let of_servers = key.starts_with("dns") || around.iter().any(|(_, key)| key == "nameservers");
            for value in value.trim_matches(['[', ']']).split(',').map(|value| unquoted(value.trim())) {
                match key.as_str() {
                    "address" | "addresses" | "dns_nameservers" if of_servers => {
                        found.3.extend(value.parse::<IpAddr>());
                    }
                    "address" | "addresses" => found.0 = found.0.or_else(|| with_prefix(value)),
                    "netmask" => found.1 = found.1.or(value.parse().ok()),
                    "gateway" | "gateway4" | "via" => found.2 = found.2.or(value.parse().ok()),
                    _ => {}
                }
            }
        }
        let (address, netmask) = found.0?;
        Some(Self { address, netmask: netmask.or(found.1)?, gateway: found.2, name_servers: found.3 })
    }
}

/// `192.0.2.7/24` or without the prefix.
fn with_prefix(text: &str) -> Option<(Ipv4Addr, Option<Ipv4Addr>)> {
    let Some((address, prefix)) = text.split_once('/') else { return Some((text.parse().ok()?, None)) };
    let prefix: u32 = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
    let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
    Some((address.parse().ok()?, Some(mask.into())))
}

fn unquoted(text: &str) -> &str {
    text.trim_matches(['\'', '"'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(gateway: Option<&str>, name_servers: &[&str]) -> Plan {
        Plan {
            address: Ipv4Addr::new(192, 0, 2, 7),
            netmask: Ipv4Addr::new(255, 255, 255, 0),
            gateway: gateway.map(|text| text.parse().expect("an address")),
            name_servers: name_servers.iter().map(|text| text.parse().expect("an address")).collect(),
        }
    }

    #[test]
    fn both_versions_of_network_config_are_read() {
        let first = "version: 1\nconfig:\n    - type: physical\n      name: eth0\n      mac_address: 'bc:24:11:00:00:01'\n      \
                     subnets:\n      - type: static\n        address: '192.0.2.7'\n        netmask: '255.255.255.0'\n        \
                     gateway: '192.0.2.1'\n    - type: nameserver\n      address:\n      - '192.0.2.53'\n      - 2001:db8::53\n      \
                     search:\n      - 'example.org'\n";
        let expected = plan(Some("192.0.2.1"), &["192.0.2.53", "2001:db8::53"]);
        assert_eq!(Plan::of_network_config(first), Some(expected));
        let second = "network:\n  version: 2\n  ethernets:\n    eth0:\n      # the first card\n      match: {name: \"en*\"}\n      \
                      addresses: [192.0.2.7/24, \"2001:db8::7/64\"]\n      routes:\n        - to: default\n          via: 192.0.2.1\n      \
                      nameservers:\n        addresses:\n          - 192.0.2.53\n";
        assert_eq!(Plan::of_network_config(second), Some(plan(Some("192.0.2.1"), &["192.0.2.53"])));
        for by_dhcp in [
            "",
            "version: 2\nethernets:\n  eth0:\n    dhcp4: true\n",
            "version: 1\nconfig:\n- type: physical\n  subnets:\n  - type: dhcp4\n",
        ] {
            assert_eq!(Plan::of_network_config(by_dhcp), None, "{by_dhcp}");
        }
    }

    #[test]
    fn network_data_of_openstack_are_read() {
        let fixed = r#"{"links":[],"networks":[{"id":"n","type":"ipv4","ip_address":"192.0.2.7","netmask":"255.255.255.0",
            "routes":[{"network":"0.0.0.0","netmask":"0.0.0.0","gateway":"192.0.2.1"}]}],
            "services":[{"type":"dns","address":"192.0.2.53"}]}"#;
        let read = Plan::of_network_data(fixed).expect("read");
        assert_eq!(read, Some(plan(Some("192.0.2.1"), &["192.0.2.53"])));
        let by_dhcp = r#"{"networks":[{"id":"n","type":"ipv4_dhcp"}]}"#;
        assert_eq!(Plan::of_network_data(by_dhcp).expect("read"), None);
    }
}
