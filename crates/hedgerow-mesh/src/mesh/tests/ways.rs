//! What becomes of ways when those through whom they lead are found elsewhere.

use hedgerow_model::path::RelaySession;

use super::super::*;
use super::world::*;
use crate::path::Why;

#[test]
fn a_relay_found_straight_takes_no_other_relays_sessions_along() {
    let mut world = World::new(3, 2);
    let relay = world.id(1);
    let third = DeviceId([9; 16]);
    world.want(0, 1);
    world.run(Duration::from_secs(1));
    let at = |text: &str| Underlay(text.parse().unwrap());
    let [first, second, other] = ["192.0.2.50:7117", "192.0.2.51:7117", "192.0.2.60:7117"].map(at);
    let session = |to: Underlay, number| Path::relayed(to, RelaySession(number));
    let through = |mesh: &Mesh| -> Vec<Path> {
        let routes = mesh.routes(third).into_iter();
        routes.map(|route| route.path).collect()
    };
    world.with(0, |mesh, view| {
        let now = view.now.mono;
        mesh.ways.client.handle_relay(relay, true, now);
        mesh.ways.client.handle_tunnel(relay, first, now);
        let ways = [session(other, 1), session(first, 2)];
        mesh.ways.paths.handle_established(third, ways[0], now);
        mesh.ways.paths.handle_known(third, &ways, now);
        mesh.drain_ways(view);
        // It was reached through the other relay for a while, and is straight again, elsewhere.
        let found = (session(other, 3), Path::direct(second));
        mesh.path_moved(relay, found, Why::Better, view);
        mesh.drain_ways(view);
        assert_eq!(through(mesh), [session(other, 1), session(second, 2)]);
    });
}
