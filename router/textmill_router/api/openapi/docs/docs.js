// Starts Swagger UI on openapi.json, with a link beside each Execute button that opens the request in the playground.
"use strict";
{
  const links = document.getElementById("links");
  const playground = links.dataset.playground;
  // The paths that the playground can send. `playground/docs_request.js` reads the link.
  const known = ["/v1/chat/completions", "/v1/completions", "/generate", "/generate_stream", "/chat_tokenize"];

  if (playground) {
    const link = document.createElement("a");
    link.href = playground;
    link.textContent = "Open the playground";
    links.append(link);
  }

  const encoded = (value) => {
    const bytes = new TextEncoder().encode(JSON.stringify(value));
    return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))
      .replaceAll("+", "-")
      .replaceAll("/", "_")
      .replaceAll("=", "");
  };

  const withLink = (Execute, system) => (props) => {
    const create = system.React.createElement;
    if (!playground || !known.includes(props.path)) return create(Execute, props);
    const open = (event) => {
      const body = system.oas3Selectors.requestBodyValue(props.path, props.method) ?? "";
      event.currentTarget.href = `${playground}#request=${encoded({ path: props.path, body: String(body) })}`;
    };
    const text = "Open this request in the playground";
    const attributes = { className: "try-in-playground", href: playground, target: "_blank", rel: "noopener" };
    return create(
      "div",
      { className: "execute-with-link" },
      create(Execute, props),
      create("a", { ...attributes, onClick: open, onAuxClick: open }, text),
    );
  };

  window.ui = SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#swagger-ui",
    presets: [SwaggerUIBundle.presets.apis],
    plugins: [() => ({ wrapComponents: { execute: withLink } })],
    deepLinking: true,
    tryItOutEnabled: true,
    validatorUrl: null,
    displayRequestDuration: true,
    defaultModelsExpandDepth: 0,
  });
}
