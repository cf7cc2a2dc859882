//! Which answer each actor message has: the contract between components.

use actix::Message;

use crate::v1;

macro_rules! answers {
    ($($message:ident => $answer:ty;)*) => {$(
        impl Message for v1::$message {
            type Result = $answer;
        }
    )*};
}

answers! {
    // edge
    ApplyState => v1::Settled;
    CompleteInventory => v1::Settled;
    StoreBookmark => v1::Settled;
    DescribeStore => v1::StoreDescription;
    SessionStarted => v1::Settled;
    ListInventory => v1::InventoryList;
    ReportStatus => v1::Settled;
    PendingReports => v1::PendingReportsList;
    ReportSettled => ();
    ReportsPending => ();
    ReadObjects => v1::ObjectList;
    KeepNode => v1::Settled;
    ReadStatuses => v1::StatusList;
    StatusChanged => ();
    ObjectsChanged => ();
    ObjectsReloaded => ();
    KindCompleted => ();
    CallCloud => v1::CallReply;
    PublishEvent => v1::Settled;
    EventReceived => v1::Settled;
    LinkStateChanged => ();
    QueryProgress => v1::Progress;
    LocateContainerLog => v1::ContainerLog;
    OpenContainerStream => v1::StreamLocation;
    ListPods => v1::PodListing;
    QueryStats => v1::NodeStats;
    ReadKubelet => v1::KubeletAnswer;
    ShutDownPods => ();
    ReleasePods => v1::Settled;
    PublishMqtt => v1::Settled;
    SubscribeMqtt => v1::Settled;
    UnsubscribeMqtt => v1::Settled;
    MqttReceived => ();
    MqttStateChanged => ();
    TwinMessage => ();
    ReportDevice => v1::CallReply;
    // cloud
    QueryCluster => v1::Cluster;
    QueryDesired => v1::DesiredState;
    SendToNode => ();
    SendEventToNode => v1::Settled;
    RecheckNodes => ();
    LocatePod => v1::PodLocation;
    QueryDevices => v1::DesiredState;
    ApplyDeviceReport => v1::Settled;
    QueryRules => v1::DesiredState;
    RouteEvent => v1::Settled;
    RouteCall => v1::CallReply;
    ApiRequestFromNode => v1::CallReply;
    ApplyFromNode => v1::Settled;
    CallFromNode => v1::CallReply;
    NodeSessionChanged => ();
    NodeHeartbeat => ();
}
