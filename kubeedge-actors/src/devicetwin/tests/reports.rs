//! What the cloud is told, and told again.

use kubeedge_proto::v1::{CallReply, ReportDevice, call_reply};

use super::*;

fn code(reply: &CallReply) -> u32 {
    match &reply.result {
        Some(call_reply::Result::ApiResponse(answer)) => answer.status,
        Some(call_reply::Result::Error(error)) => error.code,
        other => panic!("{other:?}"),
    }
}

#[actix_rt::test]
async fn a_cloud_that_asks_is_told_again_what_it_was_told() {
    let site = Site::start(Rate::default());
    let mut client = site.client().await;
    within(client.report_device_status(status(vec![("t", Some("1"), None)]))).await.unwrap();
    let first = site.until_report(|report| reported(report, "t").as_deref() == Some("1")).await;
    let ask = |name: &str, uid: &str| ReportDevice { key: Some(ObjectKey::new("ns", name)), uid: uid.into() };
    assert_eq!(code(&within(site.test.ask(ask("d", "u-earlier"))).await), 404);
    assert_eq!(code(&within(site.test.ask(ask("e", "u-e"))).await), 404);
    assert_eq!(code(&within(site.test.ask(ReportDevice::default())).await), 404);
    assert_eq!(code(&within(site.test.ask(ask("d", "u-d"))).await), 202);
    assert_eq!(site.report().await, first, "though nothing has changed");
    drop(client);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn a_change_of_the_cloud_that_is_behind_has_the_edges_own_told_again() {
    let site = Site::start(Rate::default());
    let mut client = site.client().await;
    within(client.report_device_status(status(vec![("t", Some("1"), None)]))).await.unwrap();
    let first = site.until_report(|report| reported(report, "t").as_deref() == Some("1")).await;
    let payload = json!({"event_id": "c", "twin": {"t": {"actual": {"value": "9"},
        "actual_version": {"cloud": 5, "edge": 0}}}});
    let topic = "$hw/events/device/ns/d/twin/cloud_updated".into();
    site.test.tell(TwinMessage { topic, payload: payload.to_string().into(), oversize: 0 }).await;
    loop {
        let answer = site.until_published("$hw/events/device/ns/d/twin/update/result").await;
        if answer["event_id"] == "c" {
            assert_eq!((&answer["code"], &answer["twin"]["t"]["actual"]["value"]), (&json!(409), &json!("1")));
            break;
        }
    }
    assert_eq!(site.report().await, first);
    drop(client);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn a_state_that_stays_at_the_edge_is_told_there_alone() {
    let site = Site::start(Rate::default());
    let mut client = site.client().await;
    let said = |state: &str| ReportDeviceStatesRequest {
        device_name: "d".into(),
        device_namespace: "ns".into(),
        state: state.into(),
    };
    within(client.report_device_states(said("ok"))).await.unwrap();
    let report = site.until_report(|report| report.state.as_deref() == Some("ok")).await;
    assert!(!report.last_online_time.is_empty());
    let [_, mut device] = objects("21");
    let mut json: Value = serde_json::from_slice(&device.json).unwrap();
    json["spec"]["stateReport"] = json!({"reportToCloud": false});
    device.json = json.to_string().into();
    site.change(&device, false).await;
    let report = site.until_report(|report| report.state.is_none()).await;
    assert_eq!(report.last_online_time, "", "neither is when it was seen");
    within(client.report_device_states(said("unhealthy"))).await.unwrap();
    let told = async {
        loop {
            let told = site.until_published("$hw/events/device/ns/d/state/update/result").await;
            if told["device"]["state"] == "unhealthy" {
                return;
            }
        }
    };
    within(told).await;
    within(client.report_device_status(status(vec![("t", Some("4"), None)]))).await.unwrap();
    let report = site.report().await;
    assert_eq!((reported(&report, "t").as_deref(), report.state), (Some("4"), None));
    drop(client);
    site.test.assert_quiet().await;
}
