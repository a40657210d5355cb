"""Is a ComfyUI workflow sound? Judged by the signatures in ComfyUI's sources, typed out here.

nodes.py (at e60e19b), comfy_extras/nodes_model_advanced.py, nodes_sd3.py, nodes_flux.py: inputs
that are joined, the types of widgets' values, outputs. The UI keeps a ``control_after_generate``
behind each seed.
"""

from typing import Any

INT, FLOAT, TEXT, FLAG = int, (int, float), str, bool
Signature = tuple[dict[str, str], list[Any], list[str]]
SIGNATURES: dict[str, Signature] = {
    "CheckpointLoaderSimple": ({}, [TEXT], ["MODEL", "CLIP", "VAE"]),
    "UNETLoader": ({}, [TEXT, TEXT], ["MODEL"]),
    "CLIPLoader": ({}, [TEXT, TEXT], ["CLIP"]),
    "DualCLIPLoader": ({}, [TEXT, TEXT, TEXT], ["CLIP"]),
    "TripleCLIPLoader": ({}, [TEXT, TEXT, TEXT], ["CLIP"]),
    "VAELoader": ({}, [TEXT], ["VAE"]),
    "LoraLoaderModelOnly": ({"model": "MODEL"}, [TEXT, FLOAT], ["MODEL"]),
    "ModelSamplingDiscrete": ({"model": "MODEL"}, [TEXT, FLAG], ["MODEL"]),
    "CLIPTextEncode": ({"clip": "CLIP"}, [TEXT], ["CONDITIONING"]),
    "FluxGuidance": ({"conditioning": "CONDITIONING"}, [FLOAT], ["CONDITIONING"]),
    "EmptyLatentImage": ({}, [INT, INT, INT], ["LATENT"]),
    "KSampler": (
        {
            "model": "MODEL",
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
        },
        [INT, TEXT, INT, FLOAT, TEXT, TEXT, FLOAT],
        ["LATENT"],
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, [], ["IMAGE"]),
    "SaveImage": ({"images": "IMAGE"}, [TEXT], []),
    "Note": ({}, [TEXT], []),
}
# comfy/samplers.py KSAMPLER_NAMES and SCHEDULER_NAMES; nodes.py CLIPLoader and its like; weights.
CHOICES = {
    "sampler_name": (
        "euler euler_ancestral heun dpm_2 dpm_2_ancestral lms dpmpp_2m dpmpp_2m_sde ddim"
    ),
    "scheduler": "normal karras exponential beta simple ddim_uniform",
    "type": "sd3 flux pixart lumina2 qwen_image",
    "weight_dtype": "default",
    "control_after_generate": "fixed",
    "sampling": "v_prediction",
}


def check(workflow: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Every node known, every widget of its type, every link from an output to a like input.

    Returns:
        The nodes by number.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    assert workflow["version"] == 0.4
    assert workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(links)
    assert len(links) == len(workflow["links"])
    for node in nodes.values():
        inputs, widgets, outputs = SIGNATURES[node["type"]]
        assert [i["name"] for i in node["inputs"]] == list(inputs)
        assert len(node["widgets_values"]) == len(widgets)
        for value, kind in zip(node["widgets_values"], widgets, strict=True):
            assert isinstance(value, kind)
            assert kind is FLAG or not isinstance(value, bool)
        for place, (name, kind) in enumerate(inputs.items()):
            link = links[node["inputs"][place]["link"]]
            assert link[3:] == [node["id"], place, kind], name
        assert [o["type"] for o in node["outputs"]] == outputs
        for slot, output in enumerate(node["outputs"]):
            joined = [k for k, link in links.items() if link[1:3] == [node["id"], slot]]
            assert output["links"] == joined
    for _, source, slot, target, _, kind in links.values():
        assert SIGNATURES[nodes[source]["type"]][2][slot] == kind
        assert nodes[source]["order"] < nodes[target]["order"]
    return nodes


def check_api(queued: dict[str, Any], workflow: dict[str, Any]) -> None:
    """The server's file holds the same nodes and links, and none of the UI's own."""
    nodes = {str(n["id"]): n for n in workflow["nodes"] if n["type"] != "Note"}
    assert {k: n["class_type"] for k, n in queued.items()} == {
        k: n["type"] for k, n in nodes.items()
    }
    joined = [
        [source, slot, target]
        for target, node in queued.items()
        for source, slot in (v for v in node["inputs"].values() if isinstance(v, list))
    ]
    wanted = [[str(source), slot, str(target)] for _, source, slot, target, *_ in workflow["links"]]
    assert sorted(joined) == sorted(wanted)
    for node in queued.values():
        for name, value in node["inputs"].items():
            assert name != "control_after_generate"
            assert name not in CHOICES or value in CHOICES[name].split()
