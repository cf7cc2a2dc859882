//! The life of a Deployment, a DaemonSet and a StatefulSet as a person drives it.

use std::sync::Arc;

use crate::apps::Node;

use super::{has, row, with_each_server};

#[tokio::test]
async fn a_deployment_is_made_rolled_scaled_undone_paused_and_deleted() {
    with_each_server("deployment", async |kubectl, client| {
        let _node = Node::start(Arc::new(client), "edge").await;
        let made = kubectl.run("create deployment web --image=registry.example/web:1 --replicas=2").await;
        assert_eq!(made, "deployment.apps/web created\n");
        has(&kubectl.run("rollout status deployment/web --timeout=50s").await, &["successfully rolled out"]);
        let all = kubectl.run("get deploy,rs,pods").await;
        assert_eq!(row(&all, "deployment.apps/web")[1..4], ["2/2", "2", "2"]);
        assert_eq!(all.lines().filter(|line| line.starts_with("pod/web-")).count(), 2, "{all}");
        has(&kubectl.run("get deploy -o wide").await, &["web", "registry.example/web:1", "app=web"]);
        has(&kubectl.run("get all").await, &["deployment.apps/web", "replicaset.apps/web-", "pod/web-"]);
        has(
            &kubectl.run("describe deployment web").await,
            &["2 desired | 2 updated | 2 total | 2 available", "ScalingReplicaSet", "NewReplicaSetAvailable"],
        );

        assert_eq!(kubectl.run("scale deployment web --replicas=3").await, "deployment.apps/web scaled\n");
        kubectl.run("rollout status deployment/web --timeout=50s").await;
        has(
            &kubectl.fail("scale deployment web --current-replicas=2 --replicas=1").await,
            &["Expected replicas to be 2"],
        );
        let number =
            kubectl.run_with("get deployment web --subresource=scale -o", &["jsonpath={.spec.replicas}"]).await;
        assert_eq!(number, "3");

        assert_eq!(
            kubectl.run("set image deployment/web web=registry.example/web:2").await,
            "deployment.apps/web image updated\n"
        );
        has(&kubectl.run("rollout status deployment/web --timeout=50s").await, &["successfully rolled out"]);
        let image = async || kubectl.run_with("get deployment web -o", &["jsonpath={..image}"]).await;
        assert_eq!(image().await, "registry.example/web:2");
        let history = kubectl.run("rollout history deployment/web").await;
        assert_eq!((row(&history, "1").len(), row(&history, "2").len()), (2, 2), "{history}");
        has(&kubectl.run("rollout history deployment/web --revision=1").await, &["registry.example/web:1"]);
        assert_eq!(kubectl.run("rollout undo deployment/web").await, "deployment.apps/web rolled back\n");
        kubectl.run("rollout status deployment/web --timeout=50s").await;
        assert_eq!(image().await, "registry.example/web:1");
        let history = kubectl.run("rollout history deployment/web").await;
        assert_eq!((row(&history, "2").len(), row(&history, "3").len()), (2, 2), "{history}");
        assert_eq!(kubectl.run("rollout pause deployment/web").await, "deployment.apps/web paused\n");
        kubectl.run("set env deployment/web A=b").await;
        has(&kubectl.fail("rollout restart deployment/web").await, &["paused"]);
        assert_eq!(kubectl.run("rollout resume deployment/web").await, "deployment.apps/web resumed\n");
        assert_eq!(kubectl.run("rollout restart deployment/web").await, "deployment.apps/web restarted\n");
        has(&kubectl.run("rollout status deployment/web --timeout=50s").await, &["successfully rolled out"]);
        kubectl.run("wait deployment/web --for=condition=Available --timeout=50s").await;

        // Applied again as it is, nothing changes; another strategy drops the fields of the first.
        kubectl.write("web.yaml", DEPLOYMENT);
        kubectl.run("apply -f web.yaml").await;
        assert_eq!(kubectl.run("apply -f web.yaml").await, "deployment.apps/api unchanged\n");
        kubectl.write(
            "web.yaml",
            &DEPLOYMENT
                .replace("strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1}}", "strategy: {type: Recreate}"),
        );
        assert_eq!(kubectl.run("apply -f web.yaml").await, "deployment.apps/api configured\n");
        let strategy = kubectl.run_with("get deployment api -o", &["jsonpath={.spec.strategy}"]).await;
        assert_eq!(strategy, r#"{"type":"Recreate"}"#);
        kubectl.write("wrong.yaml", &DEPLOYMENT.replace("matchLabels: {app: api}", "matchLabels: {app: other}"));
        has(
            &kubectl.fail("create -f wrong.yaml --dry-run=server").await,
            &["`selector` does not match template `labels`"],
        );
        has(&kubectl.run("explain deployment.spec.strategy").await, &["rollingUpdate", "<RollingUpdateDeployment>"]);

        has(&kubectl.run("delete deployment web api --timeout=50s").await, &["deployment.apps \"web\" deleted"]);
        kubectl.run("wait --for=delete rs,pods --all --timeout=50s").await;
        assert_eq!(kubectl.run("get deploy,rs,pods -o name").await, "");
    })
    .await;
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: api}
spec:
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1}}
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec:
      containers:
      - {name: api, image: 'registry.example/api:1'}
";

const DAEMON_SET: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      containers:
      - {name: agent, image: 'registry.example/agent:1'}
";

#[tokio::test]
async fn a_daemon_set_runs_on_every_node_rolls_is_undone_and_leaves() {
    with_each_server("daemonset", async |kubectl, client| {
        let client = Arc::new(client);
        let _one = Node::start(client.clone(), "one").await;
        kubectl.write("agent.yaml", DAEMON_SET);
        assert_eq!(kubectl.run("create -f agent.yaml").await, "daemonset.apps/agent created\n");
        has(&kubectl.run("rollout status daemonset/agent --timeout=50s").await, &["successfully rolled out"]);
        // A node that comes later gets its pod, too; one that is cordoned keeps it.
        let _two = Node::start(client, "two").await;
        kubectl.run("wait ds/agent --for=jsonpath={.status.numberAvailable}=2 --timeout=50s").await;
        assert_eq!(row(&kubectl.run("get ds").await, "agent")[1..7], ["2", "2", "2", "2", "2", "<none>"]);
        kubectl.run("cordon two").await;
        has(&kubectl.run("get pods -o wide").await, &["one", "two"]);

        kubectl.run("set image daemonset/agent agent=registry.example/agent:2").await;
        has(&kubectl.run("rollout status daemonset/agent --timeout=50s").await, &["successfully rolled out"]);
        let images = async || kubectl.run_with("get pods -o", &["jsonpath={.items[*].spec.containers[*].image}"]).await;
        assert_eq!(images().await, "registry.example/agent:2 registry.example/agent:2");
        assert_eq!(kubectl.run("get controllerrevisions -o name").await.lines().count(), 2);
        has(&kubectl.run("rollout history daemonset/agent --revision=1").await, &["registry.example/agent:1"]);
        kubectl.run("rollout undo daemonset/agent").await;
        has(&kubectl.run("rollout status daemonset/agent --timeout=50s").await, &["successfully rolled out"]);
        assert_eq!(images().await, "registry.example/agent:1 registry.example/agent:1");

        // drain leaves the pods of daemons where they are.
        // It warns of them.
        let drained = kubectl.start("drain one --ignore-daemonsets --timeout=50s").end().await;
        has(&drained, &["node/one drained"]);
        has(&kubectl.run("describe ds agent").await, &["Desired Number of Nodes Scheduled: 2", "SuccessfulCreate"]);
        has(&kubectl.run("delete ds agent --timeout=50s").await, &["daemonset.apps \"agent\" deleted"]);
        kubectl.run("wait --for=delete pods,controllerrevisions --all --timeout=50s").await;
        assert_eq!(kubectl.run("get ds,pods,controllerrevisions -o name").await, "");
    })
    .await;
}

const STATEFUL_SET: &str = "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers:
      - {name: db, image: 'registry.example/db:1'}
";

#[tokio::test]
async fn a_stateful_set_keeps_its_names_and_claims_no_volumes() {
    with_each_server("statefulset", async |kubectl, client| {
        let _node = Node::start(Arc::new(client), "edge").await;
        kubectl.write("db.yaml", STATEFUL_SET);
        assert_eq!(kubectl.run("create -f db.yaml").await, "statefulset.apps/db created\n");
        has(&kubectl.run("rollout status sts/db --timeout=50s").await, &["partitioned roll out complete"]);
        assert_eq!(row(&kubectl.run("get sts").await, "db")[1], "2/2");
        assert_eq!(kubectl.run("scale sts db --replicas=3").await, "statefulset.apps/db scaled\n");
        kubectl.run("rollout status sts/db --timeout=50s").await;
        assert_eq!(kubectl.run("get pods -o name").await, "pod/db-0\npod/db-1\npod/db-2\n");
        kubectl.run("set image sts/db db=registry.example/db:2").await;
        has(&kubectl.run("rollout status sts/db --timeout=50s").await, &["complete"]);
        let images = kubectl.run_with("get pods -o", &["jsonpath={.items[*].spec.containers[*].image}"]).await;
        assert_eq!(images, ["registry.example/db:2"; 3].join(" "));
        kubectl.run("rollout undo sts/db").await;
        kubectl.run("wait sts/db --for=jsonpath={.status.updatedReplicas}=3 --timeout=50s").await;
        kubectl
            .run("wait pod/db-0 --for=jsonpath={.spec.containers[0].image}=registry.example/db:1 --timeout=50s")
            .await;
        let claims = "  serviceName: db\n  volumeClaimTemplates: [{metadata: {name: data}, spec: {}}]\n";
        let claiming =
            STATEFUL_SET.replace("name: db}\nspec", "name: other}\nspec").replace("  serviceName: db\n", claims);
        kubectl.write("claims.yaml", &claiming);
        has(&kubectl.fail("create -f claims.yaml").await, &["no PersistentVolumeClaims"]);
        kubectl.run("delete sts db --timeout=50s").await;
        kubectl.run("wait --for=delete pods --all --timeout=50s").await;
        assert_eq!(kubectl.run("get sts,pods -o name").await, "");
    })
    .await;
}
