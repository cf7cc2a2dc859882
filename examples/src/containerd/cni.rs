//! The pods' network: a bridge of our own and a free subnet, written as a CNI configuration.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::json;

/// Where distributions put the CNI plugins.
const PLUGIN_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];
/// What is used of them.
const PLUGINS: [&str; 4] = ["bridge", "portmap", "host-local", "loopback"];
const CONFIG_FILE: &str = "10-kubeedge.conflist";

/// The folder with the plugins, if all are there.
pub(super) fn plugins() -> Option<PathBuf> {
    PLUGIN_FOLDERS.iter().map(PathBuf::from).find(|folder| PLUGINS.iter().all(|name| folder.join(name).is_file()))
}

/// A bridge and its subnet.
pub(super) struct Network {
    bridge: String,
    subnet: Subnet,
    config_folder: PathBuf,
}

impl Network {
    /// Writes the configuration below `folder`. An existing one is kept: pods of an earlier run may still use it.
    pub(super) fn prepare(folder: &Path) -> Result<Self> {
        let config_folder = folder.join("cni");
        fs::create_dir_all(&config_folder).with_context(|| format!("create {}", config_folder.display()))?;
        let path = config_folder.join(CONFIG_FILE);
        // The folder names the bridge, so that an earlier run's bridge is known for what it is.
        let hash = hash(folder.as_os_str().as_encoded_bytes());
        let bridge = format!("ke{hash:08x}");
        let subnet = match fs::read(&path).ok().and_then(|file| Subnet::of_config(&file)) {
            Some(subnet) => subnet,
            None => {
                let routes = fs::read_to_string("/proc/net/route").context("read /proc/net/route")?;
                Subnet::choose(hash, &routes).context("no free subnet in 10.200.0.0/14 for the pods of this machine")?
            }
        };
        let config = json!({
            "cniVersion": "0.4.0",
            "name": bridge,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": bridge,
                    "isGateway": true,
                    "ipMasq": true,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": folder.join("addresses"),
                        "ranges": [[{ "subnet": subnet.to_string() }]],
                        "routes": [{ "dst": "0.0.0.0/0" }],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        fs::write(&path, serde_json::to_vec_pretty(&config)?).with_context(|| format!("write {}", path.display()))?;
        Ok(Self { bridge, subnet, config_folder })
    }

    pub(super) fn bridge(&self) -> &str {
        &self.bridge
    }

    pub(super) fn subnet(&self) -> String {
        self.subnet.to_string()
    }

    pub(super) fn config_folder(&self) -> &Path {
        &self.config_folder
    }
}

/// A /24 of 10.200.0.0/14.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subnet(Ipv4Addr);

impl Subnet {
    const COUNT: u32 = 4 * 256;

    fn nth(n: u32) -> Self {
        Self(Ipv4Addr::from_bits((10 << 24 | 200 << 16) + (n % Self::COUNT) * 256))
    }

    /// The first free one, beginning at a place given by `seed`. `routes` is `/proc/net/route`.
    fn choose(seed: u32, routes: &str) -> Option<Self> {
        // The default route covers everything and says nothing.
        let used: Vec<_> = routes.lines().skip(1).filter_map(route).filter(|(_, mask)| *mask != 0).collect();
        (0..Self::COUNT).map(|n| Self::nth(seed.wrapping_add(n) % Self::COUNT)).find(|subnet| {
            let base = subnet.0.to_bits();
            used.iter().all(|(network, mask)| (network ^ base) & mask & 0xffff_ff00 != 0)
        })
    }

    /// What an earlier run wrote.
    fn of_config(file: &[u8]) -> Option<Self> {
        let config: serde_json::Value = serde_json::from_slice(file).ok()?;
        let text = config.pointer("/plugins/0/ipam/ranges/0/0/subnet")?.as_str()?;
        let base: Ipv4Addr = text.strip_suffix("/24")?.parse().ok()?;
        (0..Self::COUNT).map(Self::nth).find(|subnet| subnet.0 == base)
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/24", self.0)
    }
}

/// Network and mask of one line of `/proc/net/route`; both are written as the bytes lie in memory.
fn route(line: &str) -> Option<(u32, u32)> {
    let mut fields = line.split_whitespace().skip(1);
    let field = |text: Option<&str>| u32::from_str_radix(text?, 16).ok().map(u32::swap_bytes);
    Some((field(fields.next())?, field(fields.nth(5))?))
}

/// FNV-1a: the same folder gives the same name on every run.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        br0\t0000C80A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";

    #[test]
    fn a_used_subnet_is_passed_over() {
        assert_eq!(route(ROUTES.lines().nth(2).unwrap()), Some((0x0ac8_0000, 0xffff_ff00)));
        assert_eq!(Subnet::choose(0, ROUTES).unwrap().to_string(), "10.200.1.0/24");
        assert_eq!(Subnet::choose(5, ROUTES).unwrap().to_string(), "10.200.5.0/24");
    }

    #[test]
    fn no_subnet_is_free_below_a_wider_route() {
        let wide = "head\nbr0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n";
        assert_eq!(Subnet::choose(7, wide), None);
    }

    #[test]
    fn a_second_run_keeps_bridge_and_subnet() {
        let folder = tempfile::tempdir().unwrap();
        let first = Network::prepare(folder.path()).unwrap();
        let second = Network::prepare(folder.path()).unwrap();
        assert_eq!((first.bridge(), first.subnet()), (second.bridge(), second.subnet()));
        assert!(first.bridge().len() <= 15, "the kernel's limit for interface names");
    }
}
