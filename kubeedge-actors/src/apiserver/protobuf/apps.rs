//! Deployments as `kubectl create deployment` writes them.
//!
//! A pod has some two hundred fields; here are those that kubectl can fill. The table is **strict**: a body that holds
//! anything else is refused, since a field that is dropped in silence would change what runs.

use super::{Bool, Field, Int, META, Message, OptionalInt, Text, Texts};

const SELECTOR: &[Field] = &[
    Field(1, "matchLabels", Texts, false),
    Field(
        2,
        "matchExpressions",
        Message(&[Field(1, "key", Text, false), Field(2, "operator", Text, false), Field(3, "values", Text, true)]),
        true,
    ),
];

const PORT: &[Field] = &[
    Field(1, "name", Text, false),
    Field(2, "hostPort", Int, false),
    Field(3, "containerPort", Int, false),
    Field(4, "protocol", Text, false),
    Field(5, "hostIP", Text, false),
];

const CONTAINER: &[Field] = &[
    Field(1, "name", Text, false),
    Field(2, "image", Text, false),
    Field(3, "command", Text, true),
    Field(4, "args", Text, true),
    Field(5, "workingDir", Text, false),
    Field(6, "ports", Message(PORT), true),
    Field(7, "env", Message(&[Field(1, "name", Text, false), Field(2, "value", Text, false)]), true),
    Field(8, "resources", Message(&[]), false),
    Field(13, "terminationMessagePath", Text, false),
    Field(14, "imagePullPolicy", Text, false),
    Field(16, "stdin", Bool, false),
    Field(17, "stdinOnce", Bool, false),
    Field(18, "tty", Bool, false),
    Field(20, "terminationMessagePolicy", Text, false),
];

const TEMPLATE: &[Field] = &[
    META,
    Field(
        2,
        "spec",
        Message(&[
            Field(2, "containers", Message(CONTAINER), true),
            Field(3, "restartPolicy", Text, false),
            Field(4, "terminationGracePeriodSeconds", OptionalInt, false),
            Field(6, "dnsPolicy", Text, false),
            Field(7, "nodeSelector", Texts, false),
            Field(8, "serviceAccountName", Text, false),
            Field(9, "serviceAccount", Text, false),
            Field(10, "nodeName", Text, false),
            Field(11, "hostNetwork", Bool, false),
        ]),
        false,
    ),
];

pub(super) const DEPLOYMENT: &[Field] = &[
    META,
    Field(
        2,
        "spec",
        Message(&[
            Field(1, "replicas", OptionalInt, false),
            Field(2, "selector", Message(SELECTOR), false),
            Field(3, "template", Message(TEMPLATE), false),
            Field(4, "strategy", Message(&[Field(1, "type", Text, false)]), false),
            Field(5, "minReadySeconds", Int, false),
            Field(6, "revisionHistoryLimit", OptionalInt, false),
            Field(7, "paused", Bool, false),
            Field(9, "progressDeadlineSeconds", OptionalInt, false),
        ]),
        false,
    ),
    Field(3, "status", Message(&[]), false),
];
