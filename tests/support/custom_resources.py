"""JSON schemas of the custom resources in deploy/kubernetes, which Kubernetes itself does not have.

They are strict, and only know the fields that are used. Sources: KEDA 2.21 ("ScaledObject specification",
"Authentication", "PostgreSQL", "CPU"), and the API reference of the Prometheus Operator.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
# KEDA reads all metadata of triggers as strings.
NUMBER_AS_TEXT: Schema = {"type": "string", "pattern": "^[0-9]+$"}
COUNT: Schema = {"type": "integer", "minimum": 0}


def strict(required: Schema, optional: Schema | None = None) -> Schema:
    """Returns the schema of an object without other fields than these."""
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def strings(schema: Schema = TEXT) -> Schema:
    return {"type": "object", "additionalProperties": schema}


def resource(api_version: str, kind: str, spec: Schema) -> Schema:
    metadata = strict({"name": TEXT}, {"labels": strings(), "namespace": TEXT})
    return strict({"apiVersion": {"const": api_version}, "kind": {"const": kind}, "metadata": metadata, "spec": spec})


_POSTGRESQL = strict(
    {
        "type": {"const": "postgresql"},
        "authenticationRef": strict({"name": TEXT}),
        "metadata": strict(
            {"query": TEXT, "targetQueryValue": NUMBER_AS_TEXT}, {"activationTargetQueryValue": NUMBER_AS_TEXT}
        ),
    }
)
_CPU = strict(
    {
        "type": {"const": "cpu"},
        "metricType": {"enum": ["Utilization", "AverageValue"]},
        "metadata": strict({"value": NUMBER_AS_TEXT}),
    }
)
_POLICY = strict({"type": {"enum": ["Pods", "Percent"]}, "value": COUNT, "periodSeconds": COUNT})
_SCALING = strict({}, {"stabilizationWindowSeconds": COUNT, "policies": {"type": "array", "items": _POLICY}})

SCHEMAS: dict[str, Schema] = {
    "ScaledObject": resource(
        "keda.sh/v1alpha1",
        "ScaledObject",
        strict(
            {
                "scaleTargetRef": strict({"name": TEXT}),
                "triggers": {"type": "array", "items": {"oneOf": [_POSTGRESQL, _CPU]}},
            },
            {
                "pollingInterval": COUNT,
                "minReplicaCount": COUNT,
                "maxReplicaCount": COUNT,
                "advanced": strict(
                    {
                        "horizontalPodAutoscalerConfig": strict(
                            {"behavior": strict({}, {"scaleDown": _SCALING, "scaleUp": _SCALING})}
                        )
                    }
                ),
            },
        ),
    ),
    "TriggerAuthentication": resource(
        "keda.sh/v1alpha1",
        "TriggerAuthentication",
        strict(
            {
                "secretTargetRef": {
                    "type": "array",
                    "items": strict({"parameter": {"const": "connection"}, "name": TEXT, "key": TEXT}),
                }
            }
        ),
    ),
    "PodMonitor": resource(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        strict(
            {
                "selector": strict({"matchLabels": strings()}),
                "podMetricsEndpoints": {"type": "array", "items": strict({"port": TEXT, "path": TEXT})},
            }
        ),
    ),
}
