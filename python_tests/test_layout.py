"""Who owns which element, and what cannot be perturbed."""

import pytest
import torch

from zokern import Layout, NoiseKey, ops, use_backend
from zokern.kernels import location
from zokern.kernels.tables import KEEP_ALL


def zeros(*shape, **kinds):
    return torch.zeros(*shape, **kinds)


def test_every_tensor_starts_at_a_multiple_of_4096_in_the_order_given():
    layout = Layout([zeros(3), zeros(4096), zeros(64, 65), zeros(0), zeros(()), zeros(1)])
    assert layout.first == [0, 4096, 8192, 16384, 16384, 20480]


def test_names_and_groups_of_every_accepted_form():
    a, b, c = zeros(1), zeros(2), zeros(3)
    assert Layout([a, b]).names == ["", ""]
    assert Layout([("x", a), ("y", b)]).names == ["x", "y"]
    layout = Layout([{"params": [a, b], "param_names": ["x", "y"]}, {"params": c}])
    assert (layout.names, layout.group, len(layout.coefficient_groups)) == (["x", "y", ""], [0, 0, 1], 2)


def test_tied_weights_and_aliases_count_once():
    theta = zeros(6, 4)
    again = torch.nn.Parameter(theta.view(4, 6))
    layout = Layout([theta, theta, again, theta.t(), theta[2:4], zeros(1)])
    assert [p.shape for p in layout.params] == [(6, 4), (1,)] and layout.first == [0, 4096]
    # The tensor that covers the others stays, wherever it stands.
    layout = Layout([theta[1:2], zeros(2), theta])
    assert [tuple(p.shape) for p in layout.params] == [(2,), (6, 4)]


def test_views_side_by_side_in_one_storage_are_different_parameters():
    storage = zeros(10)
    assert len(Layout([storage[:5], storage[5:]]).params) == 2


def test_views_that_overlap_in_part_are_refused():
    storage = zeros(10)
    with pytest.raises(ValueError, match=r"theta\[1\] \('b'\) and theta\[0\] \('a'\) share part of their memory"):
        Layout([("a", storage[:6]), ("b", storage[4:])])


@pytest.mark.parametrize(
    "bad, error, message",
    [
        (lambda: torch.zeros(3, dtype=torch.int64), TypeError, "is torch.int64: leave it out"),
        (lambda: torch.zeros(3, dtype=torch.float64), TypeError, r"is torch.float64: pass .float\(\)"),
        (lambda: torch.zeros(3, dtype=torch.complex64), TypeError, "is torch.complex64"),
        (lambda: torch.zeros(3, 1).expand(3, 4), ValueError, r"is expanded \(stride 0\): pass .contiguous\(\)"),
        (lambda: torch.zeros(9).as_strided((3, 3), (1, 1)), ValueError, "overlaps itself"),
        (lambda: torch.zeros(9).as_strided((2, 3), (2, 1)), ValueError, "overlaps itself"),
        (lambda: torch.zeros(3, device="meta"), ValueError, "is on the meta device"),
        (lambda: torch.eye(3).to_sparse(), TypeError, r"is torch.sparse_coo: pass .to_dense\(\)"),
    ],
)
def test_a_parameter_that_cannot_be_perturbed_is_named_with_its_cure(bad, error, message):
    with pytest.raises(error, match=r"theta\[1\] \('lm_head.weight'\) " + message):
        Layout([("fine", zeros(2)), ("lm_head.weight", bad())])


@pytest.mark.parametrize("bad, error", [([], ValueError), (torch.zeros(2), TypeError), (["x"], TypeError)])
def test_what_is_no_list_of_parameters(bad, error):
    with pytest.raises(error, match="params"):
        Layout(bad)


def test_the_fingerprint_tells_layouts_apart_and_dtypes_not():
    base = Layout([zeros(3, 4), zeros(5)]).fingerprint()
    assert base == Layout([torch.ones(3, 4, dtype=torch.bfloat16), zeros(5)]).fingerprint()
    assert len({base, Layout([zeros(4, 3), zeros(5)]).fingerprint(), Layout([zeros(5), zeros(3, 4)]).fingerprint()}) == 3


def test_tables_follow_parameters_that_move():
    theta = torch.nn.Parameter(zeros(8))
    layout = Layout([theta])
    first = layout.tables()[0]
    assert layout.tables()[0] is first
    theta.data = torch.ones(8, dtype=torch.bfloat16)
    (table,) = layout.tables()[0]
    assert table.rows[0, 0] == theta.data_ptr() and table.dtype == torch.bfloat16
    theta.data = torch.ones(8, dtype=torch.int32).float().double()
    with pytest.raises(TypeError, match=r"theta\[0\] is torch.float64"):
        layout.tables()


@pytest.fixture(params=["compiled", "plain"])
def told(request, monkeypatch):
    """Both ways to tell where tensors lie."""
    if request.param == "plain":
        monkeypatch.setattr(location, "_reader", lambda: location._by_attributes)
    elif location._reader() is location._by_attributes:
        pytest.skip("not built, or a torch that does not offer it")


# What takes a tensor's place at its address, [4, 4] in the first 16 numbers of 64.
SAME_ADDRESS = {
    "transposed": lambda old: old.t(),
    "strides": lambda old: old.as_strided((4, 4), (16, 2)),
    "dtype": lambda old: old.view(torch.float16 if old.dtype == torch.bfloat16 else torch.bfloat16)[:, :4],
}


def views(dtype, n):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(64, generator=generator).to(dtype)[:16].view(4, 4) for _ in range(n)]


@pytest.mark.parametrize("replaced", SAME_ADDRESS.values(), ids=SAME_ADDRESS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_parameter_replaced_at_its_address_is_seen(told, replaced, dtype):
    """The one in the middle of three, between two passes; every number of its memory as the oracle leaves it."""
    results = []
    for again in (False, True):
        params, after = views(dtype, 3), [(NoiseKey(2), 0.5)]
        layout = Layout(params)
        if not again:
            ops.add_noise_(layout, [(NoiseKey(1), 0.0)])
        params[1].data = replaced(params[1].data)
        if again:
            with use_backend("reference"):
                ops.add_noise_(Layout(params), after)
        else:
            ops.add_noise_(layout, after)
        results.append([bytes(p.untyped_storage()) for p in params])
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "replaced",
    [SAME_ADDRESS["transposed"], SAME_ADDRESS["strides"], lambda old: old.view(torch.bfloat16).as_strided((4, 4), (4, 1))],
    ids=SAME_ADDRESS,
)
def test_a_state_replaced_at_its_address_is_refused(told, replaced):
    """Strided where its parameter is contiguous, or of another dtype than its neighbours."""
    params, state = [zeros(4, 4) for _ in range(3)], [views(torch.float32, 3)]
    layout, step = Layout(params), ("momentum", [(NoiseKey(1), 1.0)], (1.0, 0.5))
    ops.update_(layout, *step, state)
    held, memory = [p.clone() for p in params], bytes(state[0][1].untyped_storage())
    state[0][1].data = replaced(state[0][1])
    with pytest.raises((TypeError, ValueError), match=r"state 'm'\[1\] "):
        ops.update_(layout, *step, state)
    assert all(map(torch.equal, params, held)) and bytes(state[0][1].untyped_storage()) == memory


@pytest.mark.parametrize("replaced, shape", [(lambda old: old[:2], r"\(2, 4\)"), (lambda old: old.view(8, 2), r"\(8, 2\)")])
def test_another_shape_is_another_parameter(told, replaced, shape):
    params = views(torch.float32, 3)
    layout = Layout(params)
    layout.tables()
    params[1].data = replaced(params[1].data)
    with pytest.raises(ValueError, match=rf"theta\[1\] has shape {shape} now, it had \(4, 4\): make a new optimizer"):
        ops.add_noise_(layout, [(NoiseKey(1), 1.0)])


def test_parameters_that_come_to_share_memory_are_refused(told):
    a, b = zeros(4, 4), zeros(4, 4)
    layout = Layout([("a", a), ("b", b)])
    ops.add_noise_(layout, [(NoiseKey(1), 1.0)])
    b.data = a.data
    with pytest.raises(ValueError, match=r"theta\[1\] \('b'\) lies in the memory of another parameter now"):
        ops.add_noise_(layout, [(NoiseKey(1), 1.0)])


@pytest.mark.parametrize("left", [0, 60])
def test_memory_that_was_taken_away_is_refused(told, left):
    message = rf"'b'\) reaches to byte 64 of a storage of {left}: its memory was taken away"
    theta, before = zeros(4, 4), zeros(3)
    layout = Layout([("a", before), ("b", theta)])
    ops.add_noise_(layout, [(NoiseKey(1), 0.0)])
    theta.untyped_storage().resize_(left)
    for act in (lambda: ops.add_noise_(layout, [(NoiseKey(1), 1.0)]), lambda: Layout([("a", before), ("b", theta)])):
        with pytest.raises(ValueError, match=message):
            act()
    theta.untyped_storage().resize_(64)
    theta.zero_()
    ops.add_noise_(layout, [(NoiseKey(1), 1.0)])
    assert theta.all() and before.all()


def test_what_is_no_tensor_has_no_place(told):
    with pytest.raises(TypeError, match="float"):
        ops.update_(Layout([zeros(3)]), "momentum", [], (1.0, 0.5), [[1.0]])


def test_the_memory_of_a_state_that_was_taken_away_is_refused(told):
    layout, m = Layout([zeros(4, 4)]), zeros(4, 4)
    ops.update_(layout, "momentum", [], (1.0, 0.5), [[m]])
    m.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"state 'm'\[0\] reaches to byte 64 of a storage of 0"):
        ops.update_(layout, "momentum", [], (1.0, 0.5), [[m]])


def test_a_row_holds_its_group_and_its_keep_threshold():
    theta = zeros(8, 8)
    params = [{"params": [theta, theta[2:4]]}, {"params": [zeros(1), zeros(2), zeros(3)]}]
    layout = Layout(params, keep=[0.25, 0.9, 1, 2**-32, 0.5])
    assert layout.keep == [0.25, 1.0, 2**-32, 0.5]  # the alias took its ratio along
    (table,) = layout.tables()[0]
    assert table.rows[:, -2:].tolist() == [[0, 2**30 - 1], [1, 2**32 - 1], [1, 0], [1, 2**31 - 1]]
    assert table.masked and table.members == (0, 1, 2, 3) and table.rows.dtype == torch.int64
    (table,) = Layout(params).tables()[0]
    assert not table.masked and table.rows[:, -2:].tolist() == [[group, KEEP_ALL] for group in (0, 1, 1, 1)]


@pytest.mark.parametrize(
    "keep, error, message",
    [
        ([1.0], ValueError, "keep has 1 ratios for 2 parameters"),
        ([1.0, 0.0], ValueError, r"keep\[1\] of theta\[1\] \('b'\) is 0.0: pass a number in \(0, 1\]"),
        ([1.0, 1.5], ValueError, r"keep\[1\] of theta\[1\] \('b'\) is 1.5"),
        ([float("nan"), 1.0], ValueError, r"keep\[0\] of theta\[0\] \('a'\) is nan"),
        ([1.0, 2**-33], ValueError, r"keep\[1\] .* of at least 2\*\*-32"),
        ([1.0, "1"], TypeError, r"keep\[1\] of theta\[1\] \('b'\) is '1'"),
    ],
)
def test_a_ratio_that_is_none_is_named_with_its_parameter(keep, error, message):
    with pytest.raises(error, match=message):
        Layout([("a", zeros(1)), ("b", zeros(2))], keep)


def test_ratios_are_part_of_the_fingerprint_where_something_is_dropped():
    print_of = lambda *keep: Layout([zeros(3), zeros(5)], *keep).fingerprint()  # noqa: E731
    assert print_of() == print_of(None) == print_of([1.0, 1])
    assert len({print_of(), print_of([1.0, 0.5]), print_of([0.5, 1.0])}) == 3
