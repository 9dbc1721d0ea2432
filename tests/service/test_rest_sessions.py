from __future__ import annotations

import math

import pytest

from service.settings import Settings
from tests.service.rest import ABSENT, KEYS, connect, create, error, serve


async def test_a_session_over_rest(client):
    created = await client.post(
        "/v1/sessions", json={"channels": 2, "horizon": 1, "quantiles": [0.5], "prompt": [[1, 2]]}
    )
    assert created.status_code == 201
    info = created.json()
    session = info["session_id"]
    path = f"/v1/sessions/{session}"
    assert info == {
        "session_id": session,
        "model": "kssm-signal-base",
        "channels": 2,
        "horizon": 1,
        "quantiles": [0.5],
        "sample_interval": None,
        "next_seq": 0,
    }
    assert (await client.get(path)).json() == info
    frame = {"seq": 0, "values": [[3.0, None], [4.0, -10.0]]}
    reply = await client.post(f"{path}/frames", json=frame)
    assert reply.json() == {
        "session": session,
        "seq": 0,
        "horizon": 1,
        "quantiles": {"0.5": [[8.5], [-7.5]]},
        "anomaly": [
            {
                "score": -math.log10(0.5),
                "tail_probability": 0.5,
                "surprise": -3.0 * math.log10(0.5),
            },
            {"score": None, "tail_probability": None, "surprise": None},
        ],
    }
    assert (await client.post(f"{path}/frames", json=frame)).content == reply.content
    gap = await client.post(f"{path}/frames", json={"seq": 5, "values": [[1, 1]]})
    assert error(gap) == (409, "seq_gap")
    assert gap.json()["error"]["expected_seq"] == 1
    ahead = await client.post(f"{path}/forecast", json={"horizon": 2, "quantiles": [0.25]})
    assert ahead.json()["quantiles"] == {"0.25": [[8.25, 9.25], [-7.75, -6.75]]}
    assert (await client.post(f"{path}/forecast")).json()["horizon"] == 1
    assert (await client.post(f"{path}/reset")).json()["next_seq"] == 1
    deleted = await client.delete(path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert error(await client.get(path)) == (404, "session_not_found")


async def test_a_forgotten_duplicate_is_acknowledged(client):
    session = await create(client)
    path = f"/v1/sessions/{session}/frames"
    for seq in range(34):
        await client.post(path, json={"seq": seq, "values": [[1.0]]})
    old = await client.post(path, json={"seq": 0, "values": [[1.0]]})
    assert old.json() == {"type": "ack", "session": session, "seq": 0, "of": "frames.append"}


async def test_fork_and_state(client):
    one, other = await create(client), await create(client)
    path = f"/v1/sessions/{one}"
    await client.post(f"{path}/frames", json={"seq": 0, "values": [[5.0]]})
    forked = await client.post(f"{path}/fork")
    assert forked.status_code == 201
    assert forked.json()["next_seq"] == 0
    state = await client.get(f"{path}/state")
    assert state.headers["content-type"] == "application/vnd.safetensors"
    put = await client.put(f"/v1/sessions/{other}/state", content=state.content)
    assert put.json()["next_seq"] == 0
    forecasts = [
        (await client.post(f"/v1/sessions/{name}/forecast")).json()["quantiles"]
        for name in (one, other, forked.json()["session_id"])
    ]
    assert forecasts[0] == forecasts[1] == forecasts[2]
    assert error(await client.put(f"{path}/state", content=b"junk")) == (400, "state_malformed")
    bent = state.content[:-1] + bytes([state.content[-1] ^ 1])
    assert error(await client.put(f"{path}/state", content=bent)) == (400, "state_signature")
    wide = await create(client, channels=2)
    wrong = await client.put(f"/v1/sessions/{wide}/state", content=state.content)
    assert error(wrong) == (409, "state_mismatch")


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"seq": 0}, (422, "invalid_request")),
        ({"seq": "0", "values": [[1.0]]}, (422, "invalid_request")),
        ({"seq": -1, "values": [[1.0]]}, (400, "invalid_message")),
        ({"seq": 0, "values": [[1.0]], "more": 1}, (422, "invalid_request")),
        ({"seq": 0, "values": [[1.0, 2.0]]}, (400, "wrong_shape")),
        ({"seq": 0, "values": [["1"]]}, (400, "invalid_message")),
        ({"seq": 0, "values": "@"}, (400, "invalid_message")),
        ({"seq": 0, "values": [[2e30]]}, (400, "value_out_of_range")),
        ({"seq": 0, "values": []}, (400, "empty_frame")),
        ({"seq": 0, "values": [[1.0]], "timestamps": []}, (400, "invalid_timestamps")),
    ],
)
async def test_bad_frames(client, fields, answer):
    session = await create(client)
    response = await client.post(f"/v1/sessions/{session}/frames", json=fields)
    assert error(response) == answer
    assert (await client.get(f"/v1/sessions/{session}")).json()["next_seq"] == 0


async def test_tenants(settings):
    async with serve(Settings(api_keys=KEYS)) as app, connect(app) as client:
        ann, bob = ({"authorization": f"Bearer {name}"} for name in ("ann", "bob"))
        created = await client.post("/v1/sessions", json={}, headers=ann)
        session = created.json()["session_id"]
        assert error(await client.post("/v1/sessions", json={})) == (401, "unauthorized")
        wrong = await client.get(f"/v1/sessions/{session}", headers={"authorization": "Bearer x"})
        assert error(wrong) == (401, "unauthorized")
        assert wrong.headers["www-authenticate"] == "Bearer"
        assert (await client.get(f"/v1/sessions/{session}", headers=ann)).status_code == 200
        frame = {"seq": 0, "values": [[1.0]]}
        for method, suffix, body in (
            ("GET", "", None),
            ("DELETE", "", None),
            ("POST", "/frames", frame),
            ("POST", "/forecast", {}),
            ("POST", "/reset", None),
            ("POST", "/fork", None),
            ("GET", "/state", None),
            ("PUT", "/state", None),
        ):
            answers = [
                await client.request(method, f"/v1/sessions/{name}{suffix}", json=body, headers=bob)
                for name in (session, ABSENT)
            ]
            assert answers[0].status_code == 404
            assert answers[0].content == answers[1].content
            assert answers[0].headers == answers[1].headers
        assert (await client.get("/healthz")).status_code == 200
        assert error(await client.get("/v1/models")) == (401, "unauthorized")
