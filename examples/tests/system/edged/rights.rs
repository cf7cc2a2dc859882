//! What containers may do, and what they share with the node: namespaces, names, runtime handlers.

use super::*;

/// A filter that refuses to make directories.
const NO_MKDIR: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
const SLEEP: [&str; 2] = ["/bin/sleep", "1000"];

/// A line of `/proc/<pid>/status`.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

fn namespaces_of_the_node() -> [String; 3] {
    ["net", "pid", "ipc"].map(|name| {
        std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap().into_os_string().into_string().unwrap()
    })
}

impl Node {
    async fn namespaces(&self, pod: &str, container: &str) -> [String; 3] {
        let listed = self.exec(pod, container, "ls -l /proc/self/ns").await;
        ["net", "pid", "ipc"].map(|name| {
            let arrow = format!(" {name} -> ");
            listed.lines().find_map(|line| Some(line.split_once(&arrow)?.1.to_owned())).unwrap()
        })
    }

    /// The name servers, search domains and options of a container.
    pub(super) async fn resolv_conf(&self, pod: &str, container: &str) -> String {
        let text = self.exec(pod, container, "cat /etc/resolv.conf").await;
        let mut lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        lines.sort_unstable();
        lines.join("; ")
    }

    pub(super) async fn rights_and_namespaces_are_as_asked_for(&self) {
        let profiles = self.root.join("seccomp");
        std::fs::create_dir_all(&profiles).unwrap();
        std::fs::write(profiles.join("no-mkdir.json"), NO_MKDIR).unwrap();
        let with = |name: &str, context: Value| json!({"name": name, "command": SLEEP, "securityContext": context});
        let containers = [
            with("plain", json!({})),
            with("filtered", json!({"seccompProfile": {"type": "RuntimeDefault"}})),
            with("open", json!({"seccompProfile": {"type": "Unconfined"}})),
            with("own", json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "no-mkdir.json"}})),
            with("mighty", json!({"privileged": true})),
        ];
        let rights = self.pod("rights", &containers, |_| {});
        let narrow = [with(
            "narrow",
            json!({"runAsUser": 1000, "runAsGroup": 3000, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                "procMount": "Unmasked", "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}),
        )];
        let narrow = self.pod("narrow", &narrow, |pod| {
            let sysctl = json!({"name": "net.ipv4.ip_unprivileged_port_start", "value": "7"});
            pod["spec"]["securityContext"] =
                json!({"supplementalGroups": [4000], "fsGroup": 5000, "sysctls": [sysctl]});
            pod["spec"]["subdomain"] = "corner".into();
            pod["spec"]["setHostnameAsFQDN"] = true.into();
        });
        let sleep = [json!({"name": "a", "command": SLEEP})];
        let shared = self.pod("shared", &sleep, |pod| {
            let spec = json!({"hostNetwork": true, "hostPID": true, "hostIPC": true,
                "dnsPolicy": "ClusterFirstWithHostNet"});
            pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        });
        let (second, state) = &self.second_handler;
        for (class, handler) in [("slim", *second), ("strange", "none-such")] {
            let class = json!({"metadata": {"name": class}, "handler": handler});
            self.objects.put_runtime_class(serde_json::from_value(class).unwrap());
        }
        let other = self.pod("other", &sleep, |pod| {
            pod["spec"]["runtimeClassName"] = "slim".into();
            pod["spec"]["dnsPolicy"] = "Default".into();
            pod["spec"]["shareProcessNamespace"] = true.into();
        });
        let unknown = self.pod("unknown", &sleep, |pod| pod["spec"]["runtimeClassName"] = "strange".into());
        let users = self.pod("users", &sleep, |pod| pod["spec"]["hostUsers"] = false.into());
        let looked = [
            self.look_after(&rights).await,
            self.look_after(&shared).await,
            self.look_after(&other).await,
            self.look_after(&unknown).await,
            self.look_after(&users).await,
            self.look_after(&narrow).await,
        ];

        looked[0].until(|status| ready(status) == 5).await;
        let mut seen = Vec::new();
        for name in ["plain", "filtered", "open", "own", "mighty"] {
            let status = self.exec("rights", name, "cat /proc/1/status").await;
            seen.push((field(&status, "Seccomp").to_owned(), field(&status, "CapEff").to_owned()));
        }
        let filters: Vec<&str> = seen.iter().map(|(filter, _)| filter.as_str()).collect();
        assert_eq!(filters, ["0", "2", "0", "2", "0"], "0: none, 2: a filter");
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert_eq!(seen[4].1, field(&own, "CapEff"), "all that the runtime itself has");
        assert!(seen[..4].iter().all(|(_, rights)| *rights == seen[0].1 && *rights != seen[4].1), "{seen:?}");
        assert_eq!(
            self.exec("rights", "own", "mkdir /tmp/x 2>&1 || echo refused").await.lines().last(),
            Some("refused")
        );
        self.exec("rights", "filtered", "mkdir /tmp/x").await;
        // What belongs to the node is only there for who may use it.
        self.exec("rights", "mighty", "test -e /dev/kmsg").await;
        self.exec("rights", "plain", "test ! -e /dev/kmsg").await;
        let searches = "search default.svc.cluster.test svc.cluster.test cluster.test site.test";
        let of_cluster = format!("nameserver 10.96.0.10; options ndots:5; {searches}");
        assert_eq!(self.resolv_conf("rights", "plain").await, of_cluster, "ClusterFirst is the default");

        let status = looked[1].until(|status| ready(status) == 1).await;
        assert_eq!(status["podIP"], Ipv4Addr::LOCALHOST.to_string());
        let node = namespaces_of_the_node();
        assert_eq!(self.namespaces("shared", "a").await, node);
        let apart = self.namespaces("rights", "plain").await;
        assert!(apart.iter().zip(&node).all(|(one, of_node)| one != of_node), "{apart:?}");
        assert_eq!(self.resolv_conf("shared", "a").await, of_cluster, "ClusterFirstWithHostNet");

        looked[2].until(|status| ready(status) == 1).await;
        let id = self.runtime.observe("uid-of-other").await.unwrap().instances.remove(0).id;
        assert!(state.join(&id).is_dir(), "{second} has no container {id}");
        let id = self.runtime.observe("uid-of-shared").await.unwrap().instances.remove(0).id;
        assert!(!state.join(&id).exists(), "{second} has somebody else's container");
        let of_node = "nameserver 192.0.2.53; options ndots:2; search site.test";
        assert_eq!(self.resolv_conf("other", "a").await, of_node, "Default");
        let first = self.exec("other", "a", "cat /proc/1/cmdline").await;
        assert!(first.contains("infinity"), "the sandbox's process is the first that they all see: {first:?}");

        let status = looked[5].until(|status| ready(status) == 1).await;
        let (ip, full) = (status["podIP"].as_str().unwrap(), "narrow.corner.default.svc.cluster.test");
        let names = self.exec("narrow", "narrow", "hostname; grep narrow /etc/hosts").await;
        assert_eq!(names, format!("{full}\n{ip}\t{full}\tnarrow\n"));
        let status = self.exec("narrow", "narrow", "cat /proc/1/status").await;
        let of = |name: &str| field(&status, name).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!((of("Uid"), of("Gid")), (vec!["1000".to_owned(); 4], vec!["3000".to_owned(); 4]));
        let groups = of("Groups");
        assert!(["4000", "5000"].iter().all(|group| groups.iter().any(|found| found == group)), "{groups:?}");
        assert_eq!((field(&status, "NoNewPrivs"), field(&status, "CapBnd")), ("1", "0000000000000400"));
        let port = self.exec("narrow", "narrow", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await;
        assert_eq!(port, "7\n");
        self.exec("narrow", "narrow", "! touch /tmp/x 2>/dev/null").await;
        let kept = "grep -c ' /proc/sys ' /proc/mounts";
        self.exec("narrow", "narrow", &format!("! {kept}")).await;
        assert_eq!(self.exec("rights", "plain", kept).await, "1\n");

        let refused = " FailedCreatePodSandBox: Failed to create pod sandbox: ";
        looked[3].hears(|told| told.starts_with(refused) && told.contains("\"none-such\"")).await;
        self.users_of_its_own(&looked[4]).await;

        for (looked, pod) in looked.into_iter().zip([rights, shared, other, unknown, users, narrow]) {
            looked.delete(&pod, 1).await;
            self.nothing_is_left(&pod).await;
        }
    }

    /// They are there with containerd 2.0 and newer, and refused by name with an older one.
    async fn users_of_its_own(&self, looked: &Looked) {
        let features = self.runtime.features().await.unwrap();
        if !features.handler("").user_namespaces {
            let refusal = format!(
                " FailedCreatePodSandBox: Failed to create pod sandbox: can't set `spec.hostUsers: false`, runtime ({}) \
                 does not support user namespaces",
                features.runtime
            );
            return looked.hears(|told| told == refusal).await;
        }
        looked.until(|status| ready(status) == 1).await;
        let map = self.exec("users", "a", "cat /proc/self/uid_map").await;
        let ids: Vec<u32> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!((ids.len(), ids[0], ids[2]), (3, 0, 65_536), "{map}");
        assert!(ids[1] >= 65_536, "{map}");
        // What the node made for the pod is the pod's own.
        let owner = self.exec("users", "a", "echo x > /dev/termination-log; ls -ln /etc/hosts").await;
        assert_eq!(owner.split_whitespace().nth(2), Some("0"), "{owner}");
    }
}
