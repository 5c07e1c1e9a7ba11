# SPDX-License-Identifier: Apache-2.0
"""Layers: the backend's kinds of services. An unknown one fails a whole keep-alive there (oap-contract §D)."""

from __future__ import annotations

import difflib

from rover_plugin.errors import SettingsError

# Names of org.apache.skywalking.oap.server.core.analysis.Layer that the OAP versions 10.0 to 10.4 share.
# fmt: off
LAYERS = frozenset({
    "MESH", "GENERAL", "OS_LINUX", "K8S", "FAAS", "MESH_CP", "MESH_DP", "CACHE", "BROWSER", "SO11Y_OAP",
    "SO11Y_SATELLITE", "MQ", "VIRTUAL_DATABASE", "VIRTUAL_MQ", "VIRTUAL_GATEWAY", "K8S_SERVICE", "MYSQL",
    "VIRTUAL_CACHE", "POSTGRESQL", "APISIX", "AWS_EKS", "OS_WINDOWS", "AWS_S3", "AWS_DYNAMODB", "AWS_GATEWAY",
    "REDIS", "ELASTICSEARCH", "RABBITMQ", "MONGODB", "KAFKA", "PULSAR", "BOOKKEEPER", "NGINX", "ROCKETMQ",
})
# fmt: on


def checked_layer(key: str, layer: str) -> str:
    """Returns `layer` if it is one.

    Raises:
        SettingsError: it is not; the message suggests the nearest.
    """
    if layer in LAYERS:
        return layer
    near = difflib.get_close_matches(layer.upper(), LAYERS, n=1, cutoff=0.0)
    message = f"{key}: {layer!r} is no layer of the OAP"
    raise SettingsError(message, hint=f"did you mean {near[0]}?", key=key)
