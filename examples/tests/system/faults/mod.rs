//! Faults of the line between real processes: cloudcore and edgecores in network namespaces, under a stream of changes.

mod site;
mod store;
mod traffic;

use std::time::Duration;

use anyhow::Result;
use kubeedge_examples::netns::Net;

use crate::report::{Outcome, Report};
use site::Site;
use traffic::{Traffic, bump};

const UP: &str = "faults::a_cloud_and_nodes_come_up_in_namespaces";
const CUT: &str = "faults::a_cut_line_loses_nothing";
const STORES: &str = "faults::the_edges_stores_hold_what_the_api_has";
const DOWN: &str = "faults::nothing_is_left_on_the_machine";
const ALL: [&str; 2] = [CUT, STORES];

/// Lines, with a node at the end of each.
const LINES: u8 = 2;
/// From a line that is whole again to nodes that have everything.
const RECOVERED: Duration = Duration::from_secs(30);

pub(crate) async fn stage(report: &mut Report) {
    if !report.begins(&ALL) {
        return;
    }
    if let Err(why) = Net::up(1).map(drop) {
        for name in ALL {
            report.run(name, async { Ok(Outcome::Skipped(format!("no network namespaces here: {why:#}"))) }).await;
        }
        return;
    }
    let mut parts = None;
    report
        .run(UP, async {
            let site = Site::up(LINES).await?;
            let traffic = Traffic::begin(&site, LINES).await?;
            parts = Some((site, traffic));
            Ok(Outcome::Proved)
        })
        .await;
    let Some((mut site, mut traffic)) = parts else { return };
    report.run(CUT, cut(&mut site, &mut traffic)).await;
    report.run(STORES, stores(&mut site, &traffic)).await;
    report.run(DOWN, async { site.close(false).await.map(|()| Outcome::Proved) }).await;
}

async fn cut(site: &mut Site, traffic: &mut Traffic) -> Result<Outcome> {
    traffic
        .during(site, async |site, figures| {
            for line in 0..LINES {
                site.net().cut(line)?;
                bump(&figures.faults);
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
            for line in 0..LINES {
                site.net().mend(line)?;
            }
            Ok(())
        })
        .await?;
    let recovered = traffic.settle(site, RECOVERED).await?;
    println!("     {:?} recovered after {recovered:?}", traffic.figures);
    Ok(Outcome::Proved)
}

async fn stores(site: &mut Site, traffic: &Traffic) -> Result<Outcome> {
    let compared = traffic.compare(site).await?;
    println!("     {compared} objects compared");
    Ok(Outcome::Proved)
}
