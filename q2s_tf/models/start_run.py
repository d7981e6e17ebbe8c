"""Towers that begin with the weights of another run, which may have fewer channels."""

from pathlib import Path

import numpy as np

from q2s_tf.config import Config
from q2s_tf.errors import InputError
from q2s_tf.models.pretrained import INITIAL_BIAS, load_pretrained, merge_encoder
from q2s_tf.models.run_directory import load, read_run_config, read_tokenizers
from q2s_tf.models.towers import Tower, Towers

LEARNING_KEYS = {"preset", "dropout", "trainable", "learning_rate_factor"}
"""Keys of an encoder that its weights do not depend on."""


def fill_from_start(config: Config) -> tuple[Config, dict[str, bytes]]:
    """A config that has a `start` with the categories and the encoders of that run, and their tokenizers by encoder.

    Raises:
        InputError: no such run; a smaller dimension than that of the run; a channel or an encoder of the run that the
            config has not, or with other settings; an additional channel in a tower without a pretrained encoder.
    """
    run = Path(str(config.start))
    start = read_run_config(run)
    filled = fill_open_values(config, start)
    _check_equal_parts(filled, start, f"start {run}")
    tokenizers = read_tokenizers(run, start)
    return filled, {name: model for name, model in tokenizers.items() if start.encoders[name].pretrained}


def fill_open_values(config: Config, run: Config) -> Config:
    """A config with the categories, and the geometry of presets, that it leaves open, from the config of a run."""
    channels, encoders = dict(config.channels), dict(config.encoders)
    for name, given in run.channels.items():
        own = channels.get(name)
        if own is not None and own.kind == "categorical" and given.kind == "categorical" and not own.values:
            channels[name] = own.model_copy(update={"values": given.values})
    for name, encoder in encoders.items():
        if encoder.preset and name in run.encoders:
            encoders[name] = merge_encoder(encoder, run.encoders[name])
    return config.model_copy(update={"channels": channels, "encoders": encoders})


def _check_equal_parts(config: Config, start: Config, place: str) -> None:
    """Checks that towers of a config can have all weights of a run."""
    if config.dimension < start.dimension:
        raise InputError(
            f"{place}: its dimension is {start.dimension}, and that of the config only {config.dimension}: raise it"
        )
    for name, channel in start.channels.items():
        if config.channels.get(name) != channel:
            raise InputError(
                f"{place}: the config has no channel '{name}', or one with other settings: take [channels.{name}] over "
                "from its config.toml"
            )
    longest = config.longest_texts()
    for name, length in start.longest_texts().items():
        own, encoder = config.encoders.get(name), start.encoders[name]
        if own is None or own.model_dump(exclude=LEARNING_KEYS) != encoder.model_dump(exclude=LEARNING_KEYS):
            raise InputError(
                f"{place}: the config has no encoder '{name}', or one of another size: take [encoders.{name}] over "
                "from its config.toml"
            )
        if longest[name] > length:
            raise InputError(
                f"{place}: encoder '{name}' reads at most {length} tokens there, and a channel of the config has "
                f"max_tokens = {longest[name]}: lower it"
            )
    for name in config.channels.keys() - start.channels.keys():
        encoders = config.tower_encoders(config.channels[name].tower).values()
        if not any(encoder.preset for encoder in encoders):
            raise InputError(
                f"{place}: a channel ('{name}') can be added only to a tower with a pretrained encoder: train without "
                "start"
            )


def load_start(towers: Towers) -> None:
    """Copies the weights of the `start` of the config into towers. Untrained channels begin with little weight.

    If the towers have more dimensions, the vectors of the copied channels are 0 in these.
    """
    source = load(str(towers.config.start))
    load_pretrained(towers, towers.text_encoders.keys() - source.text_encoders.keys())
    for name, encoder in source.text_encoders.items():
        towers.text_encoders[name].set_weights(encoder.get_weights())
    for tower, given in ((towers.query, source.query), (towers.document, source.document)):
        for name, layer in given.channel_layers.items():
            for weight, values in zip(tower.channel_layers[name].weights, layer.get_weights(), strict=True):
                more = np.subtract(weight.shape, values.shape)
                weight.assign(np.pad(values, [(0, number) for number in more]))
        _copy_fusion(given, tower)


def _copy_fusion(source: Tower, target: Tower) -> None:
    """Copies W and b of the channels that both towers have."""
    if target.fusion.kernel is None:
        return
    columns = [target.channel_names.index(name) for name in source.channel_names]
    if source.fusion.kernel is not None:
        count, kernel, given = len(target.channel_names), target.fusion.kernel.numpy(), source.fusion.kernel.numpy()
        blocks = kernel.reshape(count, -1, count)  # a view: the rows of each channel
        given = given.reshape(len(columns), -1, len(columns))
        blocks[np.ix_(columns, range(given.shape[1]), columns)] = given
        target.fusion.kernel.assign(kernel)
    if target.fusion.bias is not None:
        bias = np.full(len(target.channel_names), INITIAL_BIAS, np.float32)
        bias[columns] = 0 if source.fusion.bias is None else source.fusion.bias.numpy()
        target.fusion.bias.assign(bias)
