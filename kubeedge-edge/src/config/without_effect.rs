//! Fields that KubeEdge's `edgecore.yaml` may have and that change nothing here: components that are not built yet,
//! workers and rates of a design that has none, and kubelet settings that Edged does not take.

macro_rules! paths {
    ($($prefix:literal: $($name:literal)*;)*) => {
        &[$($(concat!($prefix, $name)),*),*]
    };
}

pub(super) const FIELDS: &[&str] = paths! {
    "": "edgecoreVersion" "featureGates";
    "database.": "driverName" "aliasName";
    "modules.eventBus.": "mqttPubClientID";
    "modules.": "dbTest" "taskManager";
    "modules.metaManager.": "contextSendGroup" "contextSendModule" "enable" "remoteQueryTimeout";
    "modules.metaManager.metaServer.": "apiAudiences" "dummyServer" "serviceAccountIssuers" "serviceAccountKeyFiles"
        "tlsCaFile" "tlsCertFile" "tlsPrivateKeyFile";
    "modules.edgeStream.": "handshakeTimeout" "readDeadline" "server" "tlsTunnelCAFile" "tlsTunnelCertFile"
        "tlsTunnelPrivateKeyFile" "writeDeadline";
    "modules.edgeHub.": "messageQPS" "messageBurst" "projectID" "quic";
    "modules.edgeHub.websocket.": "enable" "handshakeTimeout" "readDeadline" "writeDeadline";
    "modules.edged.": "certDirectory" "cniBinDir" "cniCacheDir" "cniConfDir" "containerRuntime" "customInterfaceName"
        "enableMetrics" "imageCredentialProviderBinDir" "imageCredentialProviderConfigFile" "keepTerminatedPodVolumes"
        "kubeConfig" "masterServiceNamespace" "maxContainerCount" "maxPerPodContainerCount" "minimumGCAge"
        "networkPluginMTU" "networkPluginName" "podSandboxImage" "registerNode" "registerNodeNamespace"
        "remoteImageEndpoint" "runtimeCgroups" "seccompDefault";
    "modules.edged.tailoredKubeletConfig.": "apiVersion" "authentication"
        "authorization" "cgroupRoot" "configMapAndSecretChangeDetectionStrategy"
        "containerLogMaxWorkers"
        "contentType" "cpuCFSQuota" "cpuCFSQuotaPeriod" "cpuManagerPolicy" "cpuManagerPolicyOptions"
        "cpuManagerReconcilePeriod" "crashLoopBackOff" "enableContentionProfiling" "enableControllerAttachDetach"
        "enableDebugFlagsHandler" "enableDebuggingHandlers" "enableProfilingHandler" "enableServer"
        "enableSystemLogHandler" "enableSystemLogQuery" "eventBurst" "eventRecordQPS"

        "failCgroupV1" "failSwapOn" "featureGates" "fileCheckFrequency"
        "hairpinMode" "healthzBindAddress" "healthzPort" "httpCheckFrequency"
        "imageServiceEndpoint"
        "iptablesDropBit" "iptablesMasqueradeBit" "kernelMemcgNotification" "kind" "kubeAPIBurst" "kubeAPIQPS"
        "kubeReservedCgroup" "kubeletCgroups" "localStorageCapacityIsolation" "logging"
        "makeIPTablesUtilChains" "maxOpenFiles" "memoryManagerPolicy" "memorySwap"
        "memoryThrottlingFactor" "nodeLeaseDurationSeconds" "nodeStatusMaxImages" "nodeStatusReportFrequency"
        "nodeStatusUpdateFrequency" "oomScoreAdj" "podCIDR" "podsPerCore" "port"
        "preserveIptablesChains" "protectKernelDefaults" "providerID" "qosReserved" "registerNode"
        "registryBurst" "registryPullQPS" "reservedMemory" "reservedSystemCPUs" "rotateCertificates"
        "runOnce" "runtimeRequestTimeout" "seccompDefault" "serverTLSBootstrap"
        "showHiddenMetricsForVersion" "shutdownGracePeriodByPodPriority"
        "staticPodURL" "staticPodURLHeader"
        "streamingConnectionIdleTimeout" "syncFrequency" "systemCgroups" "systemReservedCgroup"
        "tlsCertFile" "tlsCipherSuites" "tlsMinVersion" "tlsPrivateKeyFile" "topologyManagerPolicy"
        "topologyManagerPolicyOptions" "topologyManagerScope" "tracing" "volumePluginDir" "volumeStatsAggPeriod";
};
