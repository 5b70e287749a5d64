"""Faster or smaller versions of two formulas of model.py, with backward passes of their own.

    AttentionInBlocks.apply(query, key, value)     F.scaled_dot_product_attention in bf16 on a CPU
    linear_cross_entropy(hidden, weight, targets)  F.cross_entropy of the logits, which never exist all at once

tests/test_kernels.py holds them equal to the formulas, values and gradients.
"""

import math

import torch
import torch.nn.functional as F

# Rows of Q at a time in attention; the longest context that saves its probabilities for the backward pass.
BLOCK, SAVED_CONTEXT = 128, 1024
LOGIT_CHUNK = 2**24  # logits formed at a time in the loss: 64 MiB in fp32, some 330 tokens at Pythia's vocabulary
MOST_TOKENS = 2048  # of a chunk: in fp16 the summed errors of more could exceed its largest number, 65,504


class AttentionInBlocks(torch.autograd.Function):
    """Causal softmax(Q K^T / sqrt(d)) V, BLOCK rows of Q at a time: after FlashAttention (arXiv 2205.14135), but each
    row's softmax is whole. Blocks of future keys are skipped. Beyond SAVED_CONTEXT tokens backward computes the
    probabilities again, so that memory is linear in the context."""

    @staticmethod
    def forward(ctx, *inputs):  # 3 x (B, H, T, d) -> (B, H, T, d)
        query, key, value = (t.flatten(0, 1) for t in inputs)  # (N, T, d), one matrix for each of N = B H heads
        out, saved = torch.empty_like(value), []
        for rows in blocks(value.shape[1]):
            probabilities = causal_probabilities(query, key, rows)
            out[:, rows] = probabilities @ value[:, : rows.stop]
            if value.shape[1] <= SAVED_CONTEXT:
                saved.append(probabilities)
        ctx.save_for_backward(query, key, value, out, *saved)
        return out.view_as(inputs[2])

    @staticmethod
    def backward(ctx, grad):
        query, key, value, out, *saved = ctx.saved_tensors
        shape, grad = grad.shape, grad.flatten(0, 1)
        exact = torch.promote_types(value.dtype, torch.float32)
        grad_query, grad_key, grad_value = (torch.zeros_like(t, dtype=exact) for t in (query, key, value))
        # The gradient of the scores is probabilities * (grad V^T - delta), delta = sum(grad * out) over d. The two
        # terms nearly cancel, so neither may be rounded to bf16 before the subtraction. The matrix product, which sums
        # in fp32, therefore subtracts too: [grad, -high, -low] [V, 1, 1]^T, with delta = high + low, two bf16 numbers.
        delta = (grad.to(exact) * out).sum(dim=-1, keepdim=True)  # (N, T, 1)
        high = delta.to(value.dtype)
        low = (delta - high).to(value.dtype)
        grad_and_delta = torch.cat((grad, -high, -low), dim=-1)  # (N, T, d + 2)
        value_and_ones = F.pad(value, (0, 2), value=1.0)  # (N, T, d + 2)
        for number, rows in enumerate(blocks(value.shape[1])):
            past = slice(rows.stop)
            probabilities = saved[number] if saved else causal_probabilities(query, key, rows)
            grad_scores = grad_and_delta[:, rows] @ value_and_ones[:, past].mT  # (N, rows, past)
            grad_scores.mul_(probabilities)
            grad_query[:, rows] = grad_scores @ key[:, past]
            grad_key[:, past] += grad_scores.mT @ query[:, rows]
            grad_value[:, past] += probabilities.mT @ grad[:, rows]
        scale = 1 / math.sqrt(query.shape[-1])
        grads = grad_query.mul_(scale), grad_key.mul_(scale), grad_value
        return tuple(t.to(query.dtype).view(shape) for t in grads)


def blocks(length):
    """The slices of BLOCK rows, the last one shorter, that cover a context."""
    return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def causal_probabilities(query, key, rows):
    """softmax(Q K^T / sqrt(d)) of some rows of queries (N, T, d) over the keys up to them: (N, rows, rows.stop)."""
    mask = key.new_full((rows.stop - rows.start, rows.stop), -math.inf).triu_(rows.start + 1)
    scores = torch.baddbmm(mask, query[:, rows], key[:, : rows.stop].mT, alpha=1 / math.sqrt(key.shape[-1]))
    return scores.softmax(dim=-1)  # sums in fp32


def linear_cross_entropy(hidden, weight, targets):
    """The cross-entropy in nats of the logits hidden W^T: (B, T, D), (V, D), (B, T) -> the mean, with a gradient, and
    the loss of each target (B, T), without one."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    weight = weight if torch.is_grad_enabled() else weight.detach()  # forward forms gradients only where it needs to
    mean, losses = LinearCrossEntropy.apply(hidden.flatten(0, 1), weight, targets.flatten(), dtype)
    return mean, losses.view(targets.shape)


class LinearCrossEntropy(torch.autograd.Function):
    """Unembedding and cross-entropy, chunk by chunk: all logits take 1.6 GB in fp32 for 4 x 2048 tokens of Pythia.

    The gradient of the summed loss with respect to the logits is softmax - one hot, known as soon as they are: forward
    uses it for the gradients of both inputs, and drops it; backward, good once, divides by N."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, dtype):
        """(N, D), (V, D), (N,), the type of the logits -> mean loss, and the loss of each token (N,)."""
        ctx.dtypes, ctx.learning = (hidden.dtype, weight.dtype), any(ctx.needs_input_grad)
        exact = torch.promote_types(hidden.dtype, torch.float32)  # of softmax, losses and sums
        N, chunk = len(targets), max(1, min(LOGIT_CHUNK // len(weight), MOST_TOKENS, len(targets)))
        losses = torch.empty(N, device=hidden.device, dtype=exact)
        if ctx.learning:
            grad_hidden = torch.empty_like(hidden, dtype=exact)
            grad_weight = torch.zeros_like(weight, dtype=exact)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        # The same memory for all chunks, worked on in place: allocating it anew costs a CPU a third of the time.
        products = hidden.new_empty(chunk, len(weight))
        floats = products if dtype == exact else torch.empty_like(products, dtype=exact)
        for start in range(0, N, chunk):
            rows = slice(start, min(start + chunk, N))  # C of them
            product, logits = products[: rows.stop - start], floats[: rows.stop - start]  # (C, V)
            torch.mm(hidden[rows], weight.T, out=product)
            if dtype != exact:
                logits.copy_(product)
            target = targets[rows, None]  # (C, 1)
            highest = logits.amax(dim=1, keepdim=True)
            losses[rows] = (highest - logits.gather(1, target)).squeeze(1)
            total = logits.sub_(highest).exp_().sum(dim=1, keepdim=True)
            losses[rows] += total.log().squeeze(1)
            if ctx.learning:
                # Softmax less one hot. Divided by N only in backward: in fp16 the small entries would vanish here.
                error = logits.div_(total)
                error.scatter_add_(1, target, torch.full_like(target, -1, dtype=exact))
                if dtype != exact:
                    error = product.copy_(error)
                grad_hidden[rows] = error @ weight
                # In parts, since a CPU adds twice as fast what is still in its cache.
                for part, columns in zip(grad_weight.split(4096), error.T.split(4096), strict=True):
                    part += columns @ hidden[rows]
        if ctx.learning:
            ctx.gradients = grad_hidden, grad_weight
        ctx.mark_non_differentiable(losses)
        return losses.mean(), losses

    @staticmethod
    def backward(ctx, grad_mean, _):
        (grad_hidden, grad_weight), ctx.gradients = ctx.gradients, None  # scaled in place, so once alone
        scale = grad_mean.to(grad_hidden.dtype) / len(grad_hidden)
        return grad_hidden.mul_(scale).to(ctx.dtypes[0]), grad_weight.mul_(scale).to(ctx.dtypes[1]), None, None
