"""The config.json of a GPT-NeoX model from elsewhere, in both spellings of its rotary fields, checked."""

from engine.files import blaming, value_of

# Entries that are kept when a model is written again: the special token ids.
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_config(hub, where, defaults, activations):
    """The fields of GPTNeoXConfig from the contents of a config.json, with the special ids in "extra".

    defaults: {field: its default}; activations: what hidden_act can be. Raises ValueError, naming `where`, for another
    architecture or a value that no GPT-NeoX can have."""
    with blaming(where):
        if hub.get("model_type") != "gpt_neox":
            what = "of a run, not of one of its checkpoints" if "flags" in hub else "model_type is not gpt_neox"
            raise ValueError(f"{what}; only GPT-NeoX models (such as Pythia) can be read")
        if hub.get("tie_word_embeddings"):
            raise ValueError("tied embeddings are not supported; Pythia's are untied")
        rope = {}
        for name in ("rope_scaling", "rope_parameters"):  # the second is current transformers' name
            entry = value_of(hub, name, dict) if hub.get(name) else {}
            if (entry.get("rope_type") or entry.get("type") or "default") != "default":
                raise ValueError(f"{name}: scaled rotary embeddings are not supported")
            rope |= {key: value for key, value in entry.items() if value is not None}
        spelled = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
        values = {name: rope.get(spelled.get(name), hub.get(name, value)) for name, value in defaults.items()}
        for name, default in defaults.items():
            low, high = (1, 2**24) if type(default) is int else (1e-30, 1e30)
            most = {"num_hidden_layers": 1000, "rotary_pct": 1}.get(name, high)  # layers take memory even as shapes
            value_of(values, name, type(default), low, most)
        if values["hidden_act"] not in activations:
            raise ValueError(f"hidden_act is {values['hidden_act']:.60}; expected one of {', '.join(activations)}")
        width, rest = divmod(values["hidden_size"], values["num_attention_heads"])
        if rest:
            raise ValueError(f"{values['num_attention_heads']} heads do not divide a width of {values['hidden_size']}")
        rotated = int(width * values["rotary_pct"])
        if rotated < 2 or rotated % 2:
            raise ValueError(f"rotary_pct {values['rotary_pct']} rotates {rotated} values, not pairs")
    return values | {"extra": {name: hub[name] for name in SPECIAL_IDS if name in hub}}
