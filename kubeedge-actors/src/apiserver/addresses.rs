//! Cluster addresses and node ports of Services.
//!
//! What is taken is read from the stored Services under the write lock and given out in the same commit: there is no
//! second record that could differ from them, deleting a Service frees what it had, and a restart changes nothing. A
//! write that needs something reads every Service, which is some milliseconds for a thousand.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde_json::{Value, json};

use super::kind::Kind;
use super::kinds::fields::{integer, list, text};
use super::kinds::service::{HEADLESS, has_cluster_ip, has_health_port, has_node_ports, type_of};
use super::object::{Key, member};
use super::status::{FieldCause, FieldError, Status};

/// Namespace and name of the Service that leads to the API server; it has the first address.
pub(crate) const KUBERNETES: (&str, &str) = ("default", "kubernetes");

/// Node ports, Kubernetes' default range; the first [`STATIC_PORTS`] are given out last, for those who ask by number.
const FIRST_PORT: u16 = 30_000;
const LAST_PORT: u16 = 32_767;
const STATIC_PORTS: u16 = 86;

/// The addresses that Services get: a CIDR of IPv4 with 12 to 29 bits of prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRange {
    base: u32,
    prefix: u8,
}

/// Why a text is no range of addresses.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no range for Services: expected an IPv4 network with a prefix of 12 to 29 bits, like 10.96.0.0/16")]
pub struct BadRange(String);

impl Default for ServiceRange {
    /// `10.96.0.0/16`.
    fn default() -> Self {
        Self { base: u32::from(Ipv4Addr::new(10, 96, 0, 0)), prefix: 16 }
    }
}

impl FromStr for ServiceRange {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let bad = || BadRange(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let base = u32::from(address.parse::<Ipv4Addr>().map_err(|_| bad())?);
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        let range = Self { base, prefix };
        if !(12..=29).contains(&prefix) || base % range.size() != 0 {
            return Err(bad());
        }
        Ok(range)
    }
}

impl std::fmt::Display for ServiceRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl ServiceRange {
    fn size(self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// The address of the API server's own Service.
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    /// Neither the network's own address nor its broadcast.
    fn contains(self, address: Ipv4Addr) -> bool {
        let offset = u32::from(address).wrapping_sub(self.base);
        (1..self.size() - 1).contains(&offset)
    }

    /// How many addresses at the beginning are given out last, for those who ask by number: Kubernetes' rule.
    fn reserved(self) -> u32 {
        (self.size() / 16).clamp(16, 256).min(self.size() / 2)
    }

    /// A free address, from a place that `random` says.
    fn next(self, taken: &HashSet<Ipv4Addr>, random: u32) -> Option<Ipv4Addr> {
        let (low, high) = (self.reserved(), self.size() - 1);
        let spread = (low..high).map(|at| low + (at - low + random % (high - low)) % (high - low));
        spread.chain(1..low).map(|offset| Ipv4Addr::from(self.base + offset)).find(|address| !taken.contains(address))
    }
}

/// What other Services have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    addresses: HashSet<Ipv4Addr>,
    ports: HashSet<u16>,
}

impl Taken {
    /// Counts one Service in.
    pub(crate) fn add(&mut self, service: &Value) {
        let addresses =
            list(service, "/spec/clusterIPs").iter().filter_map(|address| address.as_str()?.parse::<Ipv4Addr>().ok());
        self.addresses.extend(addresses);
        let ports = list(service, "/spec/ports").iter().filter_map(|port| integer(port, "/nodePort"));
        let ports = ports.chain(integer(service, "/spec/healthCheckNodePort"));
        self.ports.extend(ports.filter_map(|number| u16::try_from(number).ok()).filter(|number| *number != 0));
    }

    fn next_port(&self, random: u32) -> Option<u16> {
        let low = FIRST_PORT + STATIC_PORTS;
        let span = u32::from(LAST_PORT - low) + 1;
        let spread = (0..span).filter_map(|at| u16::try_from((at + random % span) % span).ok()).map(|at| low + at);
        spread.chain(FIRST_PORT..low).find(|number| !self.ports.contains(number))
    }

    /// Takes this port, or says why it cannot.
    fn take_port(&mut self, number: i64) -> Result<(), String> {
        match u16::try_from(number) {
            Ok(port) if (FIRST_PORT..=LAST_PORT).contains(&port) => match self.ports.insert(port) {
                true => Ok(()),
                false => Err("provided port is already allocated".into()),
            },
            _ => Err(format!(
                "provided port is not in the valid range. The range of valid ports is {FIRST_PORT}-{LAST_PORT}"
            )),
        }
    }

    fn give_port(&mut self, random: u32) -> Result<u16, Status> {
        let port = self.next_port(random).ok_or_else(|| full("nodePort"))?;
        self.ports.insert(port);
        Ok(port)
    }
}

fn full(what: &str) -> Status {
    Status::internal(format!("failed to allocate a {what}: range is full"))
}

/// Whether a kind is given addresses.
pub(crate) fn concerns(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "services"
}

/// Whether what a Service has is what it needs, as it was before: then nothing has to be looked up.
pub(crate) fn is_settled(service: &Value, old: &Value) -> bool {
    let health = |service: &Value| service["spec"].get("healthCheckNodePort").cloned();
    let ports = |service: &Value| -> Vec<Option<i64>> {
        list(service, "/spec/ports").iter().map(|port| integer(port, "/nodePort")).collect()
    };
    type_of(service) == type_of(old)
        && service["spec"].get("clusterIPs") == old["spec"].get("clusterIPs")
        && ports(service) == ports(old)
        && health(service) == health(old)
        && has_health_port(service) == has_health_port(old)
}

/// Gives `service` the address and the ports it needs and does not have. What it asks for by value, and did not have
/// before, must be free.
pub(crate) fn allocate(
    kind: &Kind,
    range: ServiceRange,
    mut taken: Taken,
    service: &mut Value,
    old: Option<&Value>,
    mut random: impl FnMut() -> u32,
) -> Result<(), Status> {
    let name = text(service, "/metadata/name").to_owned();
    let key = Key::new(text(service, "/metadata/namespace"), &name);
    let refuse = |field: String, value: Value, why: String| {
        Err(Status::invalid(kind, &name, vec![FieldError::new(field, FieldCause::Invalid(value, why))]))
    };
    if (key.namespace.as_str(), key.name.as_str()) != KUBERNETES {
        taken.addresses.insert(range.first());
    }
    if has_cluster_ip(service) {
        let asked = text(service, "/spec/clusterIP").to_owned();
        let kept = old.is_some_and(|old| text(old, "/spec/clusterIP") == asked);
        if asked.is_empty() {
            let given = range.next(&taken.addresses, random()).ok_or_else(|| full("serviceIP"))?.to_string();
            let spec = member(service, "spec");
            spec.insert("clusterIPs".into(), json!([given]));
            spec.insert("clusterIP".into(), given.into());
        } else if asked != HEADLESS && !kept {
            let all = service["spec"]["clusterIPs"].clone();
            let why = match asked.parse::<Ipv4Addr>() {
                Ok(address) if !range.contains(address) => Some(format!(
                    "failed to allocate IP {asked}: the provided IP ({asked}) is not in the valid range. The range \
                     of valid IPs is {range}"
                )),
                Ok(address) if taken.addresses.contains(&address) => {
                    Some(format!("failed to allocate IP {asked}: provided IP is already allocated"))
                }
                Ok(_) => None,
                Err(_) => Some(format!("failed to allocate IP {asked}: it is not of the family IPv4")),
            };
            if let Some(why) = why {
                return refuse("spec.clusterIPs".into(), all, why);
            }
        }
    }
    if has_node_ports(service) {
        let mut own = Taken::default();
        if let Some(old) = old {
            own.add(old);
        }
        let wanted = list(service, "/spec/ports").to_vec();
        let given = node_ports(&wanted, service, &own, &mut taken, &mut random);
        let given = match given {
            Ok(given) => given,
            Err(Refused::Port(index, number, why)) => {
                return refuse(format!("spec.ports[{index}].nodePort"), number.into(), why);
            }
            Err(Refused::Full(status)) => return Err(status),
        };
        member(service, "spec").insert("ports".into(), given.into());
    }
    if has_health_port(service) {
        let asked = integer(service, "/spec/healthCheckNodePort").unwrap_or_default();
        let kept = old.and_then(|old| integer(old, "/spec/healthCheckNodePort")) == Some(asked);
        if asked == 0 {
            let port = taken.give_port(random())?;
            member(service, "spec").insert("healthCheckNodePort".into(), port.into());
        } else if !kept && let Err(why) = taken.take_port(asked) {
            return Err(Status::internal(format!("failed to allocate requested HealthCheck NodePort {asked}: {why}")));
        }
    }
    Ok(())
}

enum Refused {
    Port(usize, i64, String),
    Full(Status),
}

/// The ports with their node ports. The same number over TCP and UDP gets one node port.
fn node_ports(
    ports: &[Value],
    service: &Value,
    own: &Taken,
    taken: &mut Taken,
    random: &mut impl FnMut() -> u32,
) -> Result<Vec<Value>, Refused> {
    let wants = type_of(service) == "NodePort" || service["spec"]["allocateLoadBalancerNodePorts"] != false;
    let mut ports = ports.to_vec();
    let number = |port: &Value, field: &str| integer(port, field).unwrap_or_default();
    let mut mine: Vec<i64> = Vec::new();
    // What is asked for by number is taken first, so that nothing is given that another port of this Service wants.
    for (index, port) in ports.iter().enumerate() {
        let asked = number(port, "/nodePort");
        if asked == 0 || mine.contains(&asked) {
            continue;
        }
        if !u16::try_from(asked).is_ok_and(|asked| own.ports.contains(&asked)) {
            taken.take_port(asked).map_err(|why| Refused::Port(index, asked, why))?;
        } else if let Ok(asked) = u16::try_from(asked) {
            taken.ports.insert(asked);
        }
        mine.push(asked);
    }
    for index in 0..ports.len() {
        if number(&ports[index], "/nodePort") != 0 || !wants {
            continue;
        }
        let (own_number, protocol) = (number(&ports[index], "/port"), ports[index]["protocol"].clone());
        let twin = ports
            .iter()
            .find(|one| {
                number(one, "/port") == own_number && one["protocol"] != protocol && number(one, "/nodePort") != 0
            })
            .map(|one| number(one, "/nodePort"));
        let given = match twin {
            Some(given) => given,
            None => i64::from(taken.give_port(random()).map_err(Refused::Full)?),
        };
        ports[index]["nodePort"] = given.into();
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::super::kinds;
    use super::*;

    fn service(name: &str, spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": name, "namespace": "a"}, "spec": spec});
        (kind().default)(&mut service);
        service
    }

    fn kind() -> &'static Kind {
        kinds::find("", "v1", "services").unwrap()
    }

    fn taken(services: &[&Value]) -> Taken {
        let mut taken = Taken::default();
        services.iter().for_each(|service| taken.add(service));
        taken
    }

    fn give(range: &str, others: &[&Value], service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        let mut seed = 7_u32;
        let random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed
        };
        allocate(kind(), range.parse().unwrap(), taken(others), service, old, random)
    }

    #[test]
    fn every_address_but_three_is_given_out_once_and_then_none_is_left() {
        let range = "10.0.0.0/28";
        let mut all: Vec<Value> = Vec::new();
        for at in 0..13 {
            let mut one = service(&format!("s{at}"), json!({"ports": [{"port": 80}]}));
            let others: Vec<&Value> = all.iter().collect();
            give(range, &others, &mut one, None).unwrap();
            all.push(one);
        }
        let mut given: Vec<String> = all.iter().map(|one| text(one, "/spec/clusterIP").to_owned()).collect();
        given.sort();
        given.dedup();
        assert_eq!(given.len(), 13);
        assert!(!given.contains(&"10.0.0.1".into()) && !given.contains(&"10.0.0.0".into()));
        let others: Vec<&Value> = all.iter().collect();
        let refused = give(range, &others, &mut service("x", json!({"ports": [{"port": 80}]})), None).unwrap_err();
        assert_eq!(refused.code, 500);
        assert!(refused.message.ends_with("failed to allocate a serviceIP: range is full"), "{}", refused.message);
        let mut own = service("kubernetes", json!({"ports": [{"port": 443}]}));
        own["metadata"]["namespace"] = json!("default");
        give(range, &others, &mut own, None).unwrap();
        assert_eq!(own["spec"]["clusterIP"], "10.0.0.1");
    }

    #[test]
    fn an_address_asked_for_must_be_free_and_of_the_range() {
        let first = service("a", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}));
        let ask = |address: &str| {
            let mut asked = service("b", json!({"clusterIP": address, "ports": [{"port": 80}]}));
            give("10.96.0.0/16", &[&first], &mut asked, None)
        };
        assert!(ask("10.96.0.11").is_ok());
        assert_eq!(
            ask("10.96.0.10").unwrap_err().message,
            "Service \"b\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: failed to allocate IP \
             10.96.0.10: provided IP is already allocated"
        );
        assert!(ask("10.96.0.1").unwrap_err().message.ends_with("already allocated"));
        let outside = ask("10.97.0.1").unwrap_err();
        assert_eq!(outside.code, 422);
        assert!(outside.message.ends_with("The range of valid IPs is 10.96.0.0/16"), "{}", outside.message);
    }

    #[test]
    fn node_ports_are_unique_and_shared_by_the_protocols_of_one_number() {
        let first = service("a", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}));
        let dns =
            json!([{"port": 53, "name": "t"}, {"port": 53, "protocol": "UDP", "name": "u"}, {"port": 9, "name": "m"}]);
        let mut one = service("b", json!({"type": "NodePort", "ports": dns}));
        give("10.96.0.0/16", &[&first], &mut one, None).unwrap();
        let ports: Vec<i64> = list(&one, "/spec/ports").iter().filter_map(|port| integer(port, "/nodePort")).collect();
        assert!(ports[0] == ports[1] && ports[1] != ports[2], "{ports:?}");
        assert!(ports.iter().all(|port| (30_086..=32_767).contains(port)), "{ports:?}");
        let ask = |number: u32| {
            let mut asked = service("c", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": number}]}));
            give("10.96.0.0/16", &[&first], &mut asked, None).map_err(|status| status.message)
        };
        assert_eq!(
            ask(30_080).unwrap_err(),
            "Service \"c\" is invalid: spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"
        );
        assert!(ask(29_999).unwrap_err().ends_with("The range of valid ports is 30000-32767"));
        // An unchanged Service keeps what it has, whatever the others did.
        let mut again = first.clone();
        again["spec"]["ports"][0]["port"] = json!(81);
        assert!(is_settled(&again, &first));
        give("10.96.0.0/16", &[], &mut again, Some(&first)).unwrap();
        assert_eq!(again["spec"]["ports"][0]["nodePort"], 30_080);
    }

    #[test]
    fn a_range_is_a_network_of_ipv4() {
        for bad in ["", "10.96.0.0", "10.96.0.1/16", "10.0.0.0/8", "10.0.0.0/30", "fd00::/108", "10.0.0.0/x"] {
            assert!(bad.parse::<ServiceRange>().is_err(), "{bad}");
        }
        assert_eq!("10.96.0.0/16".parse::<ServiceRange>().unwrap(), ServiceRange::default());
        assert_eq!(ServiceRange::default().to_string(), "10.96.0.0/16");
    }
}
