"""Muon: its iteration against the singular value decomposition, its conventions against PyTorch's, and stacks of weights. RowAdam against SparseAdam."""

import pytest
import torch
from torch import nn

from cegen.core import random_stream
from cegen.optim import Muon, RowAdam, orthogonalize


def weights(*shapes, seed=0):
    "Parameters with gradients."
    g = random_stream(seed, "optim")
    found = [nn.Parameter(torch.randn(shape, generator=g)) for shape in shapes]
    for p in found:
        p.grad = torch.randn(p.shape, generator=g)
    return found


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5), (3, 6, 6)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape):
    (matrix,) = weights(shape)
    u, s, vh = torch.linalg.svd(matrix.detach(), full_matrices=False)
    inner = u.mT @ orthogonalize(matrix.detach()) @ vh.mT
    values = inner.diagonal(dim1=-2, dim2=-1)
    assert (inner - torch.diag_embed(values)).abs().max() < 1e-3
    large = s / torch.linalg.matrix_norm(matrix.detach())[..., None] > 0.02
    assert values[large].min() > 0.6
    assert values.max() < 1.3


def test_the_length_of_a_gradient_does_not_matter():
    (matrix,) = weights((6, 6))
    torch.testing.assert_close(
        orthogonalize(matrix.detach()), orthogonalize(1e-6 * matrix.detach()), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-22, 1.0, 1e20, 1e38])
def test_gradients_of_any_size_have_a_direction(size):
    matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    torch.testing.assert_close(
        orthogonalize(size * matrix), orthogonalize(matrix), rtol=0, atol=0.05 if size < 1e-38 else 1e-4
    )


def test_a_gradient_of_zeros_has_none():
    assert not orthogonalize(torch.zeros(2, 4, 3)).any()


def test_no_gradient_no_step():
    (matrix,) = weights((4, 4))
    before = matrix.detach().clone()
    matrix.grad = torch.zeros(4, 4)
    Muon([matrix]).step()
    assert torch.equal(matrix, before)
    matrix.grad = None
    Muon([matrix]).step()
    assert torch.equal(matrix, before)


def test_agrees_with_pytorchs_muon_up_to_its_half_precision():
    ours, theirs = weights((8, 8), (8, 8)), weights((8, 8), (8, 8))
    mine = Muon(ours, lr=0.1, momentum=0.9)
    reference = torch.optim.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=0.0)
    for _ in range(3):
        mine.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.03)  # three steps of singular values near 0.1 each


def test_a_stack_of_weights_moves_as_each_of_them_alone():
    (stack,) = weights((3, 6, 6))
    alone = [nn.Parameter(p.clone()) for p in stack.detach()]
    for p, gradient in zip(alone, stack.grad, strict=True):
        p.grad = gradient.clone()
    one, many = Muon([stack]), Muon(alone)
    for _ in range(3):
        one.step()
        many.step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in alone]), rtol=1e-5, atol=1e-6)


def test_weights_of_several_shapes_and_groups_with_rates_of_their_own():
    square, wide, other = weights((4, 4), (4, 9), (4, 4))
    before = [p.detach().clone() for p in (square, wide, other)]
    Muon([{"params": [square, wide]}, {"params": [other], "lr": 1e-3}], lr=0.1).step()
    moved = [
        torch.linalg.matrix_norm(p.detach() - b, ord=2) for p, b in zip((square, wide, other), before, strict=True)
    ]
    assert 0.06 < moved[0] < 0.13
    assert 0.06 < moved[1] < 0.13
    assert 0.0006 < moved[2] < 0.0013


def test_closure_computes_gradients_and_its_loss_is_returned():
    (matrix,) = weights((4, 4))
    optimizer = Muon([matrix])

    def closure():
        optimizer.zero_grad()
        loss = (matrix**2).sum()
        loss.backward()
        return loss

    first, second = (optimizer.step(closure).item() for _ in range(2))
    assert second < first


def test_state_survives_a_round_trip():
    ours, copied = weights((5, 5)), weights((5, 5))
    first, second = Muon(ours), Muon(copied)
    first.step()
    second.step()
    third = Muon(copied)
    third.load_state_dict(second.state_dict())
    first.step()
    third.step()
    assert torch.equal(ours[0], copied[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": 0.0}, "lr"), ({"momentum": 1.5}, "momentum"), ({"n_rounds": 0}, "n_rounds"), ({"lr": float("nan")}, "lr")],
)
def test_bad_options_are_named(options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        Muon(weights((3, 3)), **options)


def test_biases_are_refused(unchecked):
    with pytest.raises(ValueError, match="biases"):
        Muon(weights((3,)))


# ---- rows that are seldom seen


def show_rows(weight, optimizer, sparse, n_steps=40, seed=0):
    "Steps that show some rows, first the even ones only."
    labels = random_stream(seed, "labels")
    for step in range(n_steps):
        seen = torch.randint(len(weight), (6,), generator=labels) // 2 * 2 if step < n_steps // 2 else torch.arange(4)
        optimizer.zero_grad()
        nn.functional.embedding(seen, weight, sparse=sparse).sin().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "betas": (0.9, 0.95)}, {"eps": 1e-2}])
def test_dense_gradients_move_rows_as_sparse_ones_do(options):
    (ours,) = weights((20, 3))
    theirs, first = nn.Parameter(ours.detach().clone()), ours.detach().clone()
    show_rows(ours, RowAdam([ours], **options), sparse=False)
    show_rows(theirs, torch.optim.SparseAdam([theirs], **options), sparse=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours[5::2], first[5::2])  # never seen, never moved
    assert not torch.equal(ours[4::2], first[4::2])


def test_a_stack_of_rows_is_several_heads():
    (stack,) = weights((2, 5, 3))
    stack.grad[1, 2] = 0
    single = [nn.Parameter(part.clone()) for part in stack.detach()]
    for p, gradient in zip(single, stack.grad, strict=True):
        p.grad = gradient.clone()
    for optimizer in (RowAdam([stack], lr=0.1), RowAdam(single, lr=0.1)):
        optimizer.step()
        optimizer.step()
    assert torch.equal(stack, torch.stack(single))


@pytest.mark.parametrize("make", [Muon, RowAdam])
def test_a_rate_may_be_a_tensor(make):
    numbers, tensors = weights((4, 4), (6, 3)), weights((4, 4), (6, 3))
    make(numbers, lr=0.25).step()
    optimizer = make(tensors, lr=0.1)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.25)
    optimizer.step()
    for p, q in zip(numbers, tensors, strict=True):
        torch.testing.assert_close(p, q)


def test_row_moments_survive_being_saved():
    (whole,) = weights((20, 3))
    halves = nn.Parameter(whole.detach().clone())
    optimizer = RowAdam([whole], lr=0.1)
    show_rows(whole, optimizer, sparse=False, seed=1)
    show_rows(whole, optimizer, sparse=False, seed=2)
    first = RowAdam([halves], lr=0.1)
    show_rows(halves, first, sparse=False, seed=1)
    second = RowAdam([halves], lr=0.1)
    second.load_state_dict(first.state_dict())
    show_rows(halves, second, sparse=False, seed=2)
    assert torch.equal(whole, halves)


@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"lr": "fast"}, {"eps": 0.0}, {"betas": (0.9, 1.5)}, {"betas": (1.0, 0.9)}]
)
def test_bad_settings_of_row_adam_are_refused(unchecked, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        RowAdam(weights((3, 3)), **options)


def test_a_step_that_is_loaded_lies_where_its_rows_are():
    (rows,) = weights((4, 3))
    saved = RowAdam([rows])
    saved.step()
    elsewhere = nn.Parameter(torch.empty(4, 3, device="meta"))
    loaded = RowAdam([elsewhere])
    loaded.load_state_dict(saved.state_dict())
    assert {value.device.type for value in loaded.state[elsewhere].values()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rows_of_any_precision_are_moved(dtype):
    rows = nn.Parameter(torch.ones(4, 3, dtype=dtype))
    rows.grad = torch.ones_like(rows)
    RowAdam([rows], lr=0.5).step()
    # Steps are counted, and their decay computed, in single precision, as PyTorch's Adam does on a GPU.
    torch.testing.assert_close(
        rows.detach(), torch.full((4, 3), 0.5, dtype=dtype), rtol=max(1e-4, torch.finfo(dtype).eps), atol=0
    )
