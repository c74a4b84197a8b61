// Uploads a dataset with a progress bar; without this script the form works as it is.

const upload = document.querySelector("[data-upload]");

if (upload) {
  const file = upload.querySelector('input[type="file"]');
  const drop = upload.querySelector("[data-drop]");
  const progress = upload.querySelector("[data-progress]");
  const errors = upload.querySelector("[data-upload-errors]");
  const button = upload.querySelector("button");

  const showName = () => (upload.querySelector("[data-drop-name]").textContent = file.files[0]?.name ?? "Choose or drop a file");
  file.addEventListener("change", showName);
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("is-over", name === "dragover");
      if (name !== "drop" || !event.dataTransfer.files.length) return;
      file.files = event.dataTransfer.files;
      showName();
    });
  }

  upload.addEventListener("submit", (event) => {
    event.preventDefault();
    const request = new XMLHttpRequest();
    request.open("POST", upload.action);
    request.setRequestHeader("X-Requested-With", "XMLHttpRequest");
    request.upload.addEventListener("progress", (moved) => (progress.value = moved.lengthComputable ? (100 * moved.loaded) / moved.total : 0));
    // All is sent: from here on the server reads the table.
    request.upload.addEventListener("load", () => progress.removeAttribute("value"));
    request.addEventListener("loadend", () => {
      if (request.status === 201) return location.assign(request.getResponseHeader("Location"));
      progress.hidden = true;
      button.disabled = false;
      if (request.status === 422) errors.innerHTML = request.responseText;
      else errors.textContent = "The upload did not reach the server. Try again.";
    });
    errors.replaceChildren();
    progress.hidden = false;
    progress.value = 0;
    button.disabled = true;
    request.send(new FormData(upload));
  });
}
