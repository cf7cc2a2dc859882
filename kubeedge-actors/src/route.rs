//! By which address this machine is reached, as its own routes tell. No packet is sent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Documentation addresses (RFC 5737, RFC 3849): never anybody's, so the route there is the default one.
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// The address that this machine has towards `peer`: the one of the route there. `None` while there is no route.
pub fn address_towards(peer: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

/// The address of the interface with the default route, of IPv4 before IPv6. `None` while there is no such route.
pub fn own_address() -> Option<IpAddr> {
    ANYWHERE.into_iter().find_map(|anywhere| address_towards((anywhere, 9).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_towards_a_peer_is_that_of_the_route() {
        assert_eq!(address_towards("127.0.0.1:9".parse().unwrap()), Some(Ipv4Addr::LOCALHOST.into()));
        assert_ne!(own_address(), Some(Ipv4Addr::LOCALHOST.into()));
    }
}
