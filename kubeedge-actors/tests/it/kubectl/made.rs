//! What kubectl makes itself, which it sends as protobuf, and what it asks before and after.

use kubeedge_actors::apiserver::discovery::WRITE_ONLY;
use kubeedge_actors::apiserver::kinds::kinds;
use serde_json::{Value, json};

use super::{POD, has, row, with_each_version};

#[tokio::test]
async fn what_kubectl_makes_itself_arrives_whole() {
    with_each_version("create", async |kubectl| {
        let json = async |what: &str| -> Value {
            serde_json::from_str(&kubectl.run(&format!("get {what} -o json")).await).unwrap()
        };
        assert_eq!(
            kubectl.run("create service clusterip web --tcp=80:8080 --tcp=443:https").await,
            "service/web created\n"
        );
        let ports = json("service web").await["spec"]["ports"].clone();
        assert_eq!(
            (&ports[0]["port"], &ports[0]["targetPort"], &ports[1]["targetPort"]),
            (&json!(80), &json!(8080), &json!("https"))
        );
        kubectl.run("create service nodeport out --tcp=80 --node-port=30080").await;
        assert_eq!(row(&kubectl.run("get service out").await, "out")[4], "80:30080/TCP");
        kubectl.run("create service clusterip quiet --clusterip=None").await;
        assert_eq!(json("service quiet").await["spec"]["clusterIP"], "None");
        kubectl.run("create service externalname far --external-name=far.example").await;
        assert_eq!(json("service far").await["spec"]["externalName"], "far.example");
        kubectl.run("create service loadbalancer lb --tcp=80").await;
        assert_eq!(json("service lb").await["spec"]["type"], "LoadBalancer");

        kubectl.write("pod.yaml", POD);
        kubectl.run("create -f pod.yaml").await;
        assert_eq!(
            kubectl.run("expose pod web --name=shown --port=80 --target-port=8080").await,
            "service/shown exposed\n"
        );
        assert_eq!(json("service shown").await["spec"]["selector"], json!({"app": "web"}));
        assert_eq!(
            kubectl.run("run single --image=registry.example/one:1 --env=A=1 --labels=x=y").await,
            "pod/single created\n"
        );
        assert_eq!(json("pod single").await["spec"]["containers"][0]["env"], json!([{"name": "A", "value": "1"}]));

        kubectl.write("blob", "\u{1}binary");
        kubectl.run("create configmap words --from-literal=a=1 --from-file=blob").await;
        kubectl.run("create secret generic pin --from-literal=pin=1234 --type=hall.example/pin").await;
        assert_eq!(
            (&json("secret pin").await["data"]["pin"], &json("secret pin").await["type"]),
            (&json!("MTIzNA=="), &json!("hall.example/pin"))
        );
        kubectl
            .run("create secret docker-registry pull --docker-server=r.example --docker-username=u --docker-password=p")
            .await;
        assert_eq!(json("secret pull").await["type"], "kubernetes.io/dockerconfigjson");
        kubectl.run("create namespace work").await;
        kubectl.run("create serviceaccount bot -n work").await;
        let token = kubectl.run("create token bot -n work --audience=vault --duration=20m").await;
        assert_eq!(token.trim().split('.').count(), 3, "a token of three parts: {token}");
        let bound = kubectl.run("create token default --bound-object-kind=Pod --bound-object-name=web").await;
        assert_eq!(bound.trim().split('.').count(), 3, "{bound}");
        let json = json("cm words").await;
        assert_eq!(json["data"], json!({"a": "1", "blob": "\u{1}binary"}), "{json}");
    })
    .await;
}

#[tokio::test]
async fn every_served_kind_is_explained_and_rights_are_listed() {
    with_each_version("explain", async |kubectl| {
        let resources = kubectl.run("api-resources --no-headers").await;
        let served = kinds().iter().map(|kind| (kind.plural, kind.group, kind.version, kind.kind));
        let written = WRITE_ONLY.iter().map(|one| (one.plural, one.group, one.version, one.kind));
        for (plural, group, version, kind) in served.chain(written) {
            let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
            let listed = resources.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let listed = listed.into_iter().any(|words| words[0] == plural && words.contains(&api_version.as_str()));
            assert!(listed, "{plural} of {api_version} is not in:\n{resources}");
            let explained = kubectl.run(&format!("explain {plural} --api-version={api_version}")).await;
            has(&explained, &[&format!("KIND:       {kind}"), "FIELDS:", "metadata"]);
        }
        has(
            &kubectl.run("explain subjectaccessreview.spec.resourceAttributes").await,
            &["namespace", "verb", "<string>"],
        );

        assert_eq!(kubectl.run("auth can-i create services -n work").await, "yes\n");
        assert_eq!(kubectl.run("auth can-i get /metrics").await, "yes\n");
        let denied = kubectl.output(&["auth", "can-i", "list", "pods", "--as=jane"]).await;
        assert!(String::from_utf8_lossy(&denied.stdout).starts_with("no"), "another one's rights are asked about");
        has(&kubectl.fail("get pods --as=jane").await, &["User \"jane\" cannot list resource \"pods\""]);
        has(&kubectl.run("auth can-i --list").await, &["Resources", "*.*", "[*]"]);
        for (asked, may) in [("list pods", "no"), ("create selfsubjectaccessreviews.authorization.k8s.io", "yes")] {
            let mut arguments: Vec<&str> = vec!["auth", "can-i"];
            arguments.extend(asked.split(' '));
            let token = kubectl.run("create token default").await;
            let (token, server) = (format!("--token={}", token.trim()), kubectl.server());
            arguments.extend([
                "--kubeconfig=anonymous",
                "--server",
                &server,
                "--certificate-authority=pki/rootCA.crt",
                &token,
            ]);
            kubectl.write("anonymous", "apiVersion: v1\nkind: Config\n");
            let output = kubectl.output(&arguments).await;
            let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(said.starts_with(may), "{asked}: {said}{why}");
        }
        has(&kubectl.fail("get --raw /api/v1/nodes/edge/proxy/metrics").await, &["nodes/proxy"]);
    })
    .await;
}
