// Sets LaTeX with KaTeX: text in, elements out, no HTML from the source. A formula it cannot read stays as source.

// Our content security policy refuses style attributes; styles set through the object model pass.
const { SvgNode } = katex.__domTree;
const { toNode } = SvgNode.prototype;
SvgNode.prototype.toNode = function () {
  const { style, ...attributes } = this.attributes;
  const node = toNode.call(Object.assign(Object.create(this), { attributes }));
  if (style) node.style.cssText = style;
  return node;
};

for (const host of document.querySelectorAll("[data-formula]")) {
  const source = host.textContent;
  try {
    katex.render(source, host, { displayMode: true, strict: "ignore", trust: false, maxExpand: 200 });
  } catch (error) {
    if (!(error instanceof katex.ParseError)) throw error;
    host.classList.add("is-unset");
    host.title = error.message;
  }
}
