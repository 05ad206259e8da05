//! A folder of one unit test's own that stands for `/`.

use std::fs;
use std::path::PathBuf;

use host::Root;

/// Gone when the test is.
pub struct Scratch {
    folder: PathBuf,
    root: Root,
}

impl Scratch {
    /// `name` is this test's alone.
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("corecast-tune-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for the test");
        Self { root: Root::at(&folder), folder }
    }

    pub fn root(&self) -> &Root {
        &self.root
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a file has a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    /// A sysctl, with slashes.
    pub fn sysctl(&self, name: &str, value: &str) {
        self.write(&format!("proc/sys/{name}"), &format!("{value}\n"));
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that stays behind is no reason to fail a test that has already spoken.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
