"""The guard of the frozen base, and the loss."""

import pytest
import tiny
import torch

from fairseq_prefix.errors import UsageError
from fairseq_prefix.toolkit.criterion import PrefixCrossEntropyCriterion, verify_trainable


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(tiny.save_base(tmp_path_factory.mktemp("base")))


def sample():
    tokens, lengths, previous = tiny.batch()
    target = torch.cat([previous[:, 1:], torch.full((len(tokens), 1), 2)], dim=1)
    inputs = {"src_tokens": tokens, "src_lengths": lengths, "prev_output_tokens": previous}
    return {"net_input": inputs, "target": target, "ntokens": target.numel(), "nsentences": len(tokens)}


def test_loss_is_the_cross_entropy_of_all_target_tokens(base):
    model = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=2).eval()
    criterion = PrefixCrossEntropyCriterion(tiny.make_task(), sentence_avg=False, label_smoothing=0.0)
    data = sample()
    loss, size, log = criterion(model, data)
    logits = model(*data["net_input"].values())[0]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), data["target"].flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)
    assert size == data["target"].numel()


def test_counts_are_logged_once(base, caplog):
    model = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=2)
    criterion = PrefixCrossEntropyCriterion(tiny.make_task(), sentence_avg=False, label_smoothing=0.0)
    with caplog.at_level("INFO"):
        for _ in range(2):
            criterion(model, sample())
    (message,) = [record.message for record in caplog.records if "folded" in record.message]
    trained = sum(parameter.numel() for parameter in model.prefix.parameters())
    assert f"trained parameters: {trained:,} | folded (stored per task): 3,072 = " in message
    assert f"total: {trained + model.base_parameters:,}" in message


def test_a_thawed_base_parameter_is_refused(base):
    model = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=2)
    model.decoder.layers[1].fc1.bias.requires_grad_(True)
    with pytest.raises(UsageError, match="decoder.layers.1.fc1.bias would be trained although .* declares it frozen"):
        verify_trainable(model)


def test_a_frozen_prefix_parameter_is_refused(base):
    model = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=2)
    model.prefix.sites["cross"].up.bias.requires_grad_(False)
    with pytest.raises(UsageError, match="prefix.sites.cross.up.bias is frozen although"):
        verify_trainable(model)


def test_a_model_wrapped_for_distributed_training_is_verified_too(base):
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        @property
        def declared_parameters(self):
            return self.module.declared_parameters

    model = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=2)
    assert verify_trainable(Wrapper(Wrapper(model))) == verify_trainable(model)


def test_full_fine_tuning_trains_everything(base):
    model = tiny.build("full_bart_tiny", base_model=base)
    assert verify_trainable(model) == model.base_parameters == model.folded_parameters


def test_a_model_that_declares_nothing_is_refused():
    with pytest.raises(UsageError, match="needs a model that declares what it trains"):
        verify_trainable(torch.nn.Linear(2, 2))


def test_the_base_alone_is_validated_and_not_trained(base):
    model = tiny.build("prefix_bart_tiny", base_model=base, prefix_length=0)
    criterion = PrefixCrossEntropyCriterion(tiny.make_task(), sentence_avg=False, label_smoothing=0.0)
    criterion(model.eval(), sample())
    with pytest.raises(UsageError, match="the model has nothing to train: it is the base alone"):
        criterion(model.train(), sample())
