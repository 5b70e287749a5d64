"""engine/kernels.py against the formulas of model.py, which are torch's own functions: values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from test_model import small

import model
from engine import kernels


def formula(hidden, weight, targets):
    """model.cross_entropy as the textbook has it, however large the logits are."""
    losses = F.cross_entropy(F.linear(hidden, weight).flatten(0, 1), targets.flatten(), reduction="none")
    return losses.mean(), losses.view(targets.shape)


def value_and_gradients(network, tokens, targets, cross_entropy=formula, dtype=None, factor=1.0):
    """(loss, losses of the targets, {name: gradient}) of a network, with a version of the loss."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "cross_entropy", cross_entropy)
        with torch.autocast(tokens.device.type, dtype, enabled=dtype is not None):
            loss = network(tokens, targets)
            losses = network(tokens, targets, per_token=True)
        gradients = torch.autograd.grad(loss * factor, list(network.parameters()))
    return loss, losses, dict(zip(dict(network.named_parameters()), gradients, strict=True))


@pytest.mark.parametrize("chunk", [61, 61 * 5, 2**24])
@pytest.mark.parametrize("exact", [torch.float32, torch.float64])
def test_the_fast_loss_is_the_formula(chunk, exact, monkeypatch):
    monkeypatch.setattr(kernels, "LOGIT_CHUNK", chunk)
    network = model.GPTNeoX(small(), seed=3).to(exact)
    tokens, targets = torch.randint(0, 61, (2, 3, 17))
    loss, losses, gradients = value_and_gradients(network, tokens, targets, kernels.linear_cross_entropy, factor=3)
    direct, by_target, expected = value_and_gradients(network, tokens, targets, factor=3)
    near = {"rtol": 1e-4, "atol": 1e-6} if exact == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    assert loss.dtype == losses.dtype == exact
    assert loss.item() == pytest.approx(direct.item(), rel=near["rtol"] / 100)
    assert losses.shape == targets.shape and torch.allclose(losses, by_target, **near)
    for name, want in expected.items():
        assert torch.allclose(gradients[name], want, **near), name


@pytest.mark.parametrize("limit", [61 * 51 - 1, 61 * 51])
def test_the_model_takes_the_chunks_where_logits_would_be_large(limit, monkeypatch):
    chunked = []
    monkeypatch.setattr(kernels, "LOGIT_CHUNK", limit)
    monkeypatch.setattr(kernels, "linear_cross_entropy", lambda *given: chunked.append(1) or formula(*given))
    model.GPTNeoX(small())(*torch.randint(0, 61, (2, 3, 17)))
    assert len(chunked) == (limit < 3 * 17 * 61)


def test_a_second_backward_is_refused():
    hidden, weight = torch.randn(1, 17, 8, requires_grad=True), torch.randn(61, 8, requires_grad=True)
    loss, _ = kernels.linear_cross_entropy(hidden, weight, torch.randint(0, 61, (1, 17)))
    loss.backward(retain_graph=True)
    before = weight.grad.clone()
    with pytest.raises(TypeError):
        loss.backward()
    assert torch.equal(weight.grad, before)


@pytest.mark.parametrize("saved", [0, 1024], ids=["computed again", "saved"])
def test_attention_in_blocks_is_the_formula(saved, monkeypatch):
    monkeypatch.setattr(kernels, "SAVED_CONTEXT", saved)
    for shape in [(2, 3, 300, 8), (1, 1, 1, 4), (1, 1, 128, 4), (1, 2, 129, 4), (3, 1, 257, 2), (2, 2, 5, 16)]:
        inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        ours = kernels.AttentionInBlocks.apply(*inputs)
        theirs = F.scaled_dot_product_attention(*inputs, is_causal=True)
        upstream = torch.randn_like(ours)
        grads = [torch.autograd.grad(out, inputs, upstream) for out in (ours, theirs)]
        for a, b in zip((ours, *grads[0]), (theirs, *grads[1]), strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-12), shape
    monkeypatch.setattr(kernels, "BLOCK", 4)
    inputs = [torch.randn(1, 2, 9, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(kernels.AttentionInBlocks.apply, inputs)
