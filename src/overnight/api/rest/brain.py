"""`/api/v1/brain`: prompts of stored brain versions. All tenants share them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from overnight.brain import read_prompt
from overnight.ledger import find_brain_version, read_brain_file

from .calls import Answer, ApiRoute, Call, json_answer, no_nul
from .models import Parameters, PathName, ResponseModel, Text, responses

router = APIRouter(route_class=ApiRoute)


class PromptQuery(Parameters):
    """`version` is a brain version or its first digits; the default is the version that was activated last."""

    version: Text = ""


class PromptShown(ResponseModel):
    name: str
    version: str
    text: str
    description: str
    tags: list[str]


@router.get(
    "/brain/prompts/{prompt:path}",
    summary="A prompt of the brain",
    responses=responses(200, "The prompt.", PromptShown),
)
async def one_prompt(call: Call, prompt: PathName, query: Annotated[PromptQuery, Query()]) -> Answer:  # noqa: ARG001
    """The text of `prompts/NAME.md` without its front matter, in any stored version."""
    store, name = call.services.ledger.store, no_nul(call.request.names[0], "the name of the prompt")
    version = await find_brain_version(store, query.version)
    file = f"prompts/{name}.md"
    found, _ = read_prompt(file, name, (await read_brain_file(store, version, file)).decode())
    return json_answer(
        200,
        {
            "name": found.name,
            "version": version,
            "text": found.text,
            "description": found.description,
            "tags": found.tags,
        },
    )
